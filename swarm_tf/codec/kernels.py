"""What the kernels of all codecs are made of: blocks, dither and checksum keys, sums.

All of it is TensorFlow, compiled with XLA within the kernel that uses it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

BLOCK = 1024
"""Weights that share a scale and a checksum."""

SEEDS = 2**62
"""The seed of an exchange is smaller."""

_LANES = 32  # measured: XLA vectorises folds of up to 64 lanes

FLOAT32_DIGITS = 2.0**-22
"""A lattice step below this share of a block's largest magnitude is lost in float32's rounding."""

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint32]


class Kernel:
    """A function of arrays that XLA compiles, once for each form of its arguments.

    tf.function does the same, but finds out the form of its arguments with so much Python that a
    call costs several times what a kernel for a hundred thousand weights does; and it warns of
    functions that are compiled for several shapes in a row, as kernels are.

    Args:
      function: its arguments are arrays, tensors, tuples of them, or None.
    """

    def __init__(self, function: Callable[..., Sequence[tf.Tensor]]) -> None:
        self._function = tf.function(function, jit_compile=True, autograph=False)
        self._compiled: dict[tuple[object, ...], Callable[..., Sequence[tf.Tensor]]] = {}

    def __call__(self, *arguments: Any) -> Sequence[tf.Tensor]:
        tensors = _for_each(tf.convert_to_tensor, arguments)
        form = _for_each(lambda tensor: (tuple(tensor.shape), tensor.dtype), tensors)
        compiled = self._compiled.get(form)
        if compiled is None:
            compiled = self._compiled[form] = self._function.get_concrete_function(*tensors)
        return compiled(*tensors)


def _for_each(function: Callable[[Any], object], arguments: Any) -> Any:
    """`function` of each leaf of nested tuples; None stays."""
    if arguments is None:
        return None
    if isinstance(arguments, tuple):
        return tuple(_for_each(function, one) for one in arguments)
    return function(arguments)


def blocks_of(length: int) -> int:
    """Number of blocks that hold `length` weights; the last one may be partly empty."""
    return -(-length // BLOCK)


def in_blocks(vector: tf.Tensor) -> tf.Tensor:
    """[length] -> [blocks, BLOCK], the tail filled with zeros. Blocks stay as they are."""
    if len(vector.shape) == 2:
        return vector
    length = vector.shape[0]
    missing = blocks_of(length) * BLOCK - length
    if missing:
        vector = tf.pad(vector, [[0, missing]])
    return tf.reshape(vector, [-1, BLOCK])


def block_sums(values: tf.Tensor) -> tf.Tensor:
    """Sum of each block: [blocks, BLOCK] -> [blocks]; only inside of an XLA function."""
    (lanes,) = xla.optimization_barrier(_in_lanes(tf.add, values))  # or XLA merges the two steps
    return tf.reduce_sum(lanes, axis=1)


def partial_magnitude(x: tf.Tensor) -> tf.Tensor:
    """The largest |x| of each lane, as its bits: [blocks, BLOCK] -> int32 [blocks, _LANES].

    They order as |x| does, with NaN above all; a maximum of floats may lose a NaN.
    """
    return _in_lanes(tf.maximum, tf.bitcast(tf.abs(x), tf.int32))


def _in_lanes(fold: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], values: tf.Tensor) -> tf.Tensor:
    """Fold the stretches of each block, lane by lane: [blocks, BLOCK] -> [blocks, _LANES].

    Written out, since XLA vectorises this, and a reduction hardly.
    """
    stretches = (values[:, at : at + _LANES] for at in range(0, BLOCK, _LANES))
    return functools.reduce(fold, stretches)


def magnitude_of_blocks(lanes: tf.Tensor) -> Floats:
    """`partial_magnitude` -> float32 [blocks]; NaN shows as NaN."""
    magnitude: Floats = np.asarray(lanes).max(axis=1).view(np.float32)
    return magnitude


def weights_in_blocks(length: int) -> Floats:
    """How many of `length` weights each block holds: float32 [blocks]."""
    weights = np.full(blocks_of(length), BLOCK, np.float32)
    weights[-1:] -= len(weights) * BLOCK - length
    return weights


def dither_keys(seed: int, blocks: int) -> Words:
    """Two random words a block, the same on both sides of an exchange: uint32 [blocks, 2].

    They key the multiply-shift hash (a*k + b) mod 2^32 of the position k in the block, which is
    strongly universal in its high bits (Dietzfelbinger 1996): each dither is uniform, any two are
    independent. That is all that the unbiasedness and the variance bound of the codec need.
    """
    # They are drawn outside of the kernels: Philox within them doubles the time to compile each.
    words: Words = np.random.Philox(key=seed).random_raw(blocks).astype("<u8").view("<u4")
    return words.reshape(blocks, 2)


def position_hash(keys: tf.Tensor) -> tf.Tensor:
    """The hash of every position, with `keys` of `dither_keys`: uint32 [blocks, BLOCK]."""
    position = tf.cast(tf.range(BLOCK), tf.uint32)[None]
    return keys[:, 0:1] * position + keys[:, 1:2]


def _checksum_weights() -> Words:
    generator = np.random.Generator(np.random.Philox(key=0xC0DEC))
    high = generator.integers(2**21, size=(2, BLOCK), dtype=np.uint32) << np.uint32(11)
    low = np.stack([generator.permutation(BLOCK) for _ in range(2)]).astype(np.uint32)
    return high | (low << np.uint32(1)) | np.uint32(1)


CHECKSUM_WEIGHTS = _checksum_weights()
"""uint32 [2, BLOCK]. They are odd, so one wrong integer always changes the sum mod 2^32. They
differ in their low 11 bits, so two that are wrong by opposite amounts up to 2^21 change it too."""


def checksum_weights(keys: tf.Tensor, word: int) -> tf.Tensor:
    """Odd weights of one checksum word, varied from exchange to exchange: uint32 [blocks, BLOCK].

    Not the dither's hash itself: it is linear in the position, so errors such as +1, -2, +1 in a
    row would cancel in every exchange.
    """
    even = tf.bitwise.bitwise_and(keys[:, 1:2], np.uint32(0xFFFFFFFE))
    return tf.bitwise.bitwise_xor(tf.constant(CHECKSUM_WEIGHTS[word])[None], even)
