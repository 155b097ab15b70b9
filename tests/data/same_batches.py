"""Compares the batches of two pipelines."""

import tensorflow as tf


def assert_begins_at(part, first, count=4):
    """`part.train_from(first)` must give the batches that `part.train` gives after `first`."""
    expected = list(part.train.skip(first).take(count))
    found = list(part.train_from(first, ()).take(count))
    assert len(found) == count
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
            assert a.dtype == b.dtype
            assert a.numpy().tobytes() == b.numpy().tobytes()
