"""The recipes' data: one call gives a rank its training stream and the common test set.

`data.images.load` is for sets of images, `data.text.translation.load` for sentence pairs.
"""

from dataclasses import dataclass

import tensorflow as tf

AHEAD = 2
"""Batches made while a step runs: one would do, two ride out a slow one."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What one rank trains and tests on, of whatever kind the examples are.

    Attributes:
      train: endless batches.
      test: the whole test split, once.
      train_examples: training examples of all ranks together.
      shard_examples: training examples this rank sees in an epoch of its own.
      steps_per_pass: local steps a rank until all ranks together have taken train_examples, on
        average; the same on every rank, also where the parts differ in size.
    """

    train: tf.data.Dataset
    test: tf.data.Dataset
    train_examples: int
    shard_examples: int
    steps_per_pass: float
