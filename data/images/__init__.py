"""Image classification sets: held in memory, or streamed from their files."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data import Data, partition
from data.images import pipeline, sources, streaming
from swarm_tf.config import DataConfig
from swarm_tf.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Images(Data):
    """The data of an image classification set.

    If all images have one size and need at most `sources.MEMORY_LIMIT` bytes as uint8, the set is
    held in memory. Any other set is streamed from its files, as RGB images cropped and resized to
    image_size. `train` has batches of float32 images [batch_size, height, width, channels] and
    int32 labels [batch_size]; a batch may contain examples of two epochs. `test` has the same
    batches in a fixed order; its last batch may be smaller.

    Attributes:
      classes: number of classes.
      input_shape: (height, width, channels).
    """

    classes: int
    input_shape: tuple[int, int, int]


def load(config: DataConfig, *, rank: int, size: int, batch_size: int, seed: int) -> Images:
    """Reads the set and selects this rank's part; the same seed gives the same batches.

    Args:
      config: uses name, data_dir, partition, dirichlet_alpha, augment (flips and crops; images in
        memory are padded by 4 pixels, streamed images are cropped as in Szegedy et al. 2015), and
        image_size (of streamed images).
      rank: this rank, below `size`.
      size: number of ranks.
      batch_size: examples per local step.
      seed: at least 0, and the same on all ranks; otherwise their parts would overlap.

    Raises:
      UsageError: if the set is missing or cannot be used, the partition is unknown or impossible,
        or augment is set for digits. Nothing is ever downloaded.
    """
    source = sources.read(config.name, config.data_dir)
    if config.augment and not source.augmentable:
        raise UsageError(
            f"data.augment=True would change the classes of the images of data.name={config.name}; "
            "set data.augment=False"
        )
    streamed = isinstance(source.train, sources.Records)
    return (_streamed if streamed else _in_memory)(source, config, rank, size, batch_size, seed)


def _in_memory(
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

    shard = len(next(epochs()))  # raises errors of the partition here, not at the first batch
    augment = (seed, rank) if config.augment else None
    return Images(
        train_from=lambda first: pipeline.train(
            source.train, scale, epochs, batch_size, augment=augment, first=first
        ),
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
    shard = int(next(epochs())[:, 1].sum())  # raises errors before reading all labels
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
        train_from=lambda first: streaming.train(
            source.train,
            epochs,
            batch_size,
            side,
            key=(seed, rank),
            augment=config.augment,
            keep=keep,
            first=first,
        ),
        test=streaming.test(source.test, batch_size, side),
        classes=source.classes,
        input_shape=(side, side, 3),
        train_examples=examples,
        shard_examples=shard,
        steps_per_pass=examples / (size * batch_size),
    )
