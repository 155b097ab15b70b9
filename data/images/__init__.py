"""Image classification sets: held in memory, or streamed from their files."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from data import Data, Stages, partition
from data.images import pipeline, sources, streaming
from data.partition import Indices, Used
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
    labels, examples = source.train.labels, len(source.train.labels)

    def epochs(rank: int, size: int, used: Used) -> Iterator[tuple[int, Indices]]:
        alpha = config.dirichlet_alpha
        return partition.epochs(
            config.partition, labels, rank=rank, size=size, alpha=alpha, seed=seed, used=used
        )

    def tagged(rank: int, size: int, used: Used) -> Iterator[Indices]:
        """Batches of indices, with the number of each one's epoch: see `partition.used_by`."""
        numbered = (epoch * examples + part for epoch, part in epochs(rank, size, used))
        return pipeline.batches(numbered, batch_size)

    def train_from(first: int, stages: Stages) -> tf.data.Dataset:
        used = partition.used_by(stages, examples, tagged)
        return pipeline.train(
            source.train,
            scale,
            lambda: (batch % examples for batch in tagged(rank, size, used)),
            augment=(seed, rank) if config.augment else None,
            first=first,
        )

    _, part = next(epochs(rank, size, Used()))  # raises errors of the partition before training
    return Images(
        train_from=train_from,
        test=pipeline.test(source.test, scale, batch_size),
        classes=source.classes,
        input_shape=source.train.images.shape[1:],
        train_examples=examples,
        shard_examples=len(part),
        steps_per_pass=examples / (size * batch_size),
    )


def _streamed(
    source: sources.Source, config: DataConfig, rank: int, size: int, batch_size: int, seed: int
) -> Images:
    files, side = source.train.counts, config.image_size
    examples = sum(files)
    labels = None

    def reader(rank: int, size: int, used: Used) -> streaming.Reader:
        keep = None
        if config.partition == "dirichlet":
            parts = partition.dirichlet(labels, size, config.dirichlet_alpha, seed)
            keep = np.isin(np.arange(examples), parts[rank])
        kind = config.partition
        return streaming.Reader(
            source.train,
            lambda: partition.range_epochs(
                kind, files, rank=rank, size=size, seed=seed, first=used.first
            ),
            key=(seed, rank),
            keep=keep,
            used=used,
        )

    def tagged(rank: int, size: int, used: Used) -> Iterator[Indices]:
        return reader(rank, size, used).order(batch_size)

    def train_from(first: int, stages: Stages) -> tf.data.Dataset:
        used = partition.used_by(stages, examples, tagged)
        return streaming.train(
            reader(rank, size, used), batch_size, side, augment=config.augment, first=first
        )

    # These two raise errors of the partition before all labels are read.
    next(partition.range_epochs(config.partition, files, rank=rank, size=size, seed=seed))
    if config.partition == "dirichlet":
        partition.check_alpha(config.dirichlet_alpha)
        labels = streaming.labels(source.train)
    return Images(
        train_from=train_from,
        test=streaming.test(source.test, batch_size, side),
        classes=source.classes,
        input_shape=(side, side, 3),
        train_examples=examples,
        shard_examples=reader(rank, size, Used()).records(),
        steps_per_pass=examples / (size * batch_size),
    )
