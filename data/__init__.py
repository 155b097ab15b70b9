"""The data sets of the recipes: a rank's training batches, and the test set that all ranks share.

`data.images.load` loads sets of images, `data.text.translation.load` sets of sentence pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

Stages = Sequence[Sequence[int]]

AHEAD = 2
"""Batches that are prefetched: one is enough on average, the second covers a slow batch."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The training and test data of one rank, for any kind of examples.

    Attributes:
      train_from: train_from(first, stages) is `train` from batch `first` on, where a resumed run
        goes on. `stages` are earlier parts of the run, on other numbers of ranks: for each, the
        batches that each rank has used. What was used of an epoch is left out.
      test: batches of the whole test split, once.
      train_examples: number of training examples of all ranks together.
      shard_examples: number of training examples in this rank's part.
      steps_per_pass: mean number of local steps per rank until all ranks together have used
        train_examples; the same on every rank, even if their parts differ in size.
    """

    train_from: Callable[[int, Stages], tf.data.Dataset]
    test: tf.data.Dataset
    train_examples: int
    shard_examples: int
    steps_per_pass: float

    @property
    def train(self) -> tf.data.Dataset:
        """Training batches without end; every iterator starts at the first batch."""
        return self.train_from(0, ())
