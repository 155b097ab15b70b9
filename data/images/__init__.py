"""Sets of images with a class each: held in memory, or streamed from their files."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data import Data, partition
from data.images import pipeline, sources, streaming
from swarm_tf.config import DataConfig
from swarm_tf.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Images(Data):
    """Images with a class each.

    A set of uint8 images of one size that takes at most `sources.MEMORY_LIMIT` bytes is held in
    memory; any other is streamed from its files, as RGB images cropped and resized to image_size.
    `train` has batches of float32 images [batch_size, height, width, channels] and int32 labels
    [batch_size], and a batch may straddle two epochs. `test` is in order, batched alike; its last
    batch may be smaller.

    Attributes:
      classes: number of classes.
      input_shape: (height, width, channels).
    """

    classes: int
    input_shape: tuple[int, int, int]


def load(config: DataConfig, *, rank: int, size: int, batch_size: int, seed: int) -> Images:
    """Reads the set and cuts this rank's part; the same seed gives the same batches.

    Args:
      config: name, data_dir, partition, dirichlet_alpha, augment (flips and crops: of images in
        memory padded by 4 pixels, of streamed ones as of Szegedy et al. 2015), and image_size (of
        streamed images).
      rank: this rank, of `size`.
      batch_size: examples a local step.
      seed: the same on all ranks, or their parts would overlap; at least 0.

    Raises:
      UsageError: for a set that is not there or cannot be used, a partition that is unknown or
        impossible, and for augment on digits; nothing is ever downloaded.
    """
    source = sources.read(config.name, config.data_dir)
    if config.augment and not source.augmentable:
        raise UsageError(
            f"data.augment=True would change what the images of data.name={config.name} mean; "
            "set data.augment=False"
        )
    streamed = isinstance(source.train, sources.Records)
    return (_streamed if streamed else _held)(source, config, rank, size, batch_size, seed)


def _held(
    source: sources.Source, config: DataConfig, rank: int, size: int, batch_size: int, seed: int
) -> Images:
    scale = pipeline.scale_of(source.train.images)
    examples = len(source.train.labels)

    def epochs() -> Iterator[partition.Indices]:
        return partition.epochs(
            config.partition,
            source.train.labels,
            rank=rank,
            size=size,
            alpha=config.dirichlet_alpha,
            seed=seed,
        )

    shard = len(next(epochs()))  # also raises here, and not at the first batch, what is wrong
    augment = (seed, rank) if config.augment else None
    return Images(
        train=pipeline.train(source.train, scale, epochs, batch_size, augment=augment),
        test=pipeline.test(source.test, scale, batch_size),
        classes=source.classes,
        input_shape=source.train.images.shape[1:],
        train_examples=examples,
        shard_examples=shard,
        steps_per_pass=examples / (size * batch_size),
    )


def _streamed(
    source: sources.Source, config: DataConfig, rank: int, size: int, batch_size: int, seed: int
) -> Images:
    files, side = source.train.counts, config.image_size

    def epochs() -> Iterator[partition.Ranges]:
        return partition.range_epochs(config.partition, files, rank=rank, size=size, seed=seed)

    examples, keep = sum(files), None
    shard = int(next(epochs())[:, 1].sum())  # also raises here, before all labels are read
    if config.partition == "dirichlet":
        labels = streaming.labels(source.train)
        own = next(
            partition.epochs(
                "dirichlet", labels, rank=rank, size=size, alpha=config.dirichlet_alpha, seed=seed
            )
        )
        keep = np.isin(np.arange(examples), own)
        shard = len(own)
    return Images(
        train=streaming.train(
            source.train,
            epochs,
            batch_size,
            side,
            key=(seed, rank),
            augment=config.augment,
            keep=keep,
        ),
        test=streaming.test(source.test, batch_size, side),
        classes=source.classes,
        input_shape=(side, side, 3),
        train_examples=examples,
        shard_examples=shard,
        steps_per_pass=examples / (size * batch_size),
    )
