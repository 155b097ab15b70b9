"""The recipes' data: one call gives a rank its training stream and the common test set."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import tensorflow as tf

from data import partition, pipeline, sources
from swarm_tf.errors import UsageError


class Config(Protocol):
    """The keys of section `data` that `load` reads."""

    name: str
    data_dir: str | None
    partition: str
    dirichlet_alpha: float
    augment: bool


@dataclass(frozen=True)
class Data:
    """What one rank trains and tests on.

    Attributes:
      train: endless batches of float32 images [batch_size, height, width, channels] and int32
        labels [batch_size].
      test: the whole test split in order, batched alike; the last batch may be smaller.
      classes: number of classes.
      input_shape: (height, width, channels).
      train_examples: training examples of all ranks together.
      shard_examples: training examples this rank sees in an epoch of its own.
      steps_per_epoch: local steps a rank until all ranks together have taken train_examples;
        the same on every rank, also where the parts differ in size.
    """

    train: tf.data.Dataset
    test: tf.data.Dataset
    classes: int
    input_shape: tuple[int, int, int]
    train_examples: int
    shard_examples: int
    steps_per_epoch: int


def load(config: Config, *, rank: int, size: int, batch_size: int, seed: int) -> Data:
    """Reads the set and cuts this rank's part; the same seed gives the same batches.

    Args:
      config: name, data_dir, partition, dirichlet_alpha, and augment (crops and flips).
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
    return Data(
        train=pipeline.train(source.train, scale, epochs, batch_size, augment=augment),
        test=pipeline.test(source.test, scale, batch_size),
        classes=source.classes,
        input_shape=source.train.images.shape[1:],
        train_examples=examples,
        shard_examples=shard,
        steps_per_epoch=math.ceil(examples / (size * batch_size)),
    )
