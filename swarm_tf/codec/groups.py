"""Runs kernels on groups of blocks, which stay in a core's cache between the passes of XLA.

XLA compiles a kernel with several results to one loop over the weights for each of them. Over a
whole chunk every loop would read the weights from memory again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

GROUP = 64
"""Blocks in a group: a quarter of a megabyte of float32."""


def in_groups(
    kernel: Callable[..., Sequence[tf.Tensor]], *inputs: tf.Tensor | None
) -> list[tf.Tensor]:
    """`kernel(*inputs)`, a group of rows at a time; inputs and results are [blocks, ...].

    Only inside of a function that XLA compiles. Inputs may be None, and stay None.
    """
    blocks = next(int(x.shape[0]) for x in inputs if x is not None)
    if blocks <= GROUP or tf.config.list_logical_devices("GPU"):  # one launch is faster on a GPU
        return list(kernel(*inputs))

    def group(start: tf.Tensor) -> Sequence[tf.Tensor]:
        return kernel(*(None if x is None else _rows(x, start) for x in inputs))

    def step(i: tf.Tensor, *results: tf.Tensor) -> list[tf.Tensor]:
        # The last group overlaps the one before; the rows in both come out the same.
        start = tf.minimum(i * GROUP, blocks - GROUP)
        updated = [
            xla.dynamic_update_slice(whole, part, _corner(whole, start))
            for whole, part in zip(results, group(start), strict=True)
        ]
        return [i + 1, *updated]

    shapes = group(tf.constant(0))  # only their shapes are used: XLA removes the computation
    empty = [tf.zeros([blocks, *x.shape[1:]], x.dtype) for x in shapes]
    count = -(-blocks // GROUP)
    return list(tf.while_loop(lambda i, *_: i < count, step, [tf.constant(0), *empty]))[1:]


def _rows(x: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    return tf.slice(x, _corner(x, start), [GROUP, *x.shape[1:]])


def _corner(x: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    return tf.stack([start] + [0] * (len(x.shape) - 1))
