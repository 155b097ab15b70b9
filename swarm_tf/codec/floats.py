"""Plain numbers: float32 (exact), and bfloat16 and float16 rounded with the shared dither.

Rounded with one dither on both sides, two weights that differ by less than the format's own step
still meet on average; rounded to the nearest they would not meet at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from swarm_tf.codec.base import (
    BLOCK,
    Bools,
    Codec,
    Encoded,
    Floats,
    blocks_of,
    checksum_weights,
    dither_keys,
    folded,
    in_blocks,
)


@dataclass(frozen=True)
class Format:
    """A floating-point format: `fraction` bits after the point, in steps no finer than those of
    2^min_exponent, up to `largest`.
    """

    dtype: tf.DType
    wire_id: int
    fraction: int
    min_exponent: int
    largest: float


FLOAT32 = Format(tf.float32, 1, 23, -126, float(np.finfo(np.float32).max))
# The grid of bfloat16 ends where its reciprocal would leave float32's range.
BFLOAT16 = Format(tf.bfloat16, 2, 7, -119, 2.0**127)
FLOAT16 = Format(tf.float16, 3, 10, -14, 65504.0)


class Float(Codec):
    """Every weight as one number of `format`; `scales` are not used."""

    def __init__(self, format: Format) -> None:
        self.format = format
        self.wire_id = format.wire_id
        self.dtype = format.dtype
        self.words = 1
        self._encode = tf.function(self._encode_kernel, jit_compile=True, autograph=False)
        self._compare = tf.function(self._compare_kernel, jit_compile=True, autograph=False)
        self._correct = tf.function(self._correct_kernel, jit_compile=True, autograph=False)

    def payload_length(self, length: int) -> int:
        return blocks_of(length) * BLOCK

    def encode(
        self, terms: Sequence[tf.Tensor], seed: int, scales: Floats, magnitude: Floats
    ) -> Encoded:
        length = int(terms[0].shape[0])
        if length == 0:
            payload, sums = tf.zeros([0], self.dtype), np.zeros((1, 0), np.uint32)
        else:
            rows, lanes = self._encode(tuple(terms), dither_keys(seed, blocks_of(length)))
            payload = tf.reshape(rows, [-1])
            sums = lanes.numpy().sum(axis=1, dtype=np.uint32)[None]
        # float16 ends at 65,504; the dither may add one step.
        usable = magnitude <= self.format.largest * (1 - 2.0**-self.format.fraction)
        sums = np.where(usable, sums, ~sums)
        return Encoded(self.wire_id, length, seed, np.zeros(0, np.float32), sums, payload, usable)

    def verify(self, own: Encoded, other: Encoded) -> tuple[Bools, Floats]:
        blocks = blocks_of(own.length)
        if blocks == 0:
            return np.zeros(0, np.bool_), np.zeros(0, np.float32)
        keys = dither_keys(own.seed, blocks)
        lanes, spread = self._compare(_rows(own), _rows(other), keys)
        sums = lanes.numpy().sum(axis=1, dtype=np.uint32)
        accepted: Bools = (sums == other.checksums[0]) & own.usable
        weights = np.full(blocks, BLOCK, np.float32)
        weights[-1] = own.length - (blocks - 1) * BLOCK
        total = spread.numpy().sum(axis=1, dtype=np.float32)
        return accepted, (total / weights).astype(np.float32)

    def correct(
        self, own: Encoded, other: Encoded, accepted: Bools, onto: tf.Tensor | None = None
    ) -> tf.Tensor:
        if own.length == 0:
            return tf.zeros([0])
        rows = self._correct(_rows(own), _rows(other), accepted, onto)
        return tf.reshape(rows, [-1])[: own.length]

    def _encode_kernel(
        self, terms: tuple[tf.Tensor, ...], keys: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        x = in_blocks(tf.add_n(terms))
        if self.format.dtype != tf.float32:
            x = self._dithered(x, keys)
        numbers = tf.cast(x, self.format.dtype)
        checks = folded(_mixed(numbers) * checksum_weights(keys, 0), 128)
        return numbers, checks

    def _dithered(self, x: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """x rounded to the format's own grid, up with the probability of the remainder."""
        position = tf.cast(tf.range(BLOCK), tf.uint32)[None]
        hashed = keys[:, 0:1] * position + keys[:, 1:2]
        dither = tf.cast(tf.bitwise.right_shift(hashed, np.uint32(8)), tf.float32) * 2.0**-24
        exponent = tf.bitwise.bitwise_and(tf.bitcast(x, tf.uint32), np.uint32(0x7F800000))
        smallest = np.uint32((self.format.min_exponent + 127) << 23)
        exponent = tf.maximum(exponent, smallest)
        power = tf.bitcast(exponent, tf.float32)  # 2^floor(log2 |x|)
        inverse = tf.bitcast(np.uint32(254 << 23) - exponent, tf.float32)
        grid = np.float32(2.0**self.format.fraction)
        return tf.floor(x * inverse * grid + dither) * (power / grid)

    def _compare_kernel(
        self, own: tf.Tensor, other: tf.Tensor, keys: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        lanes = folded(_mixed(other) * checksum_weights(keys, 0), 128)
        distance = tf.abs(tf.cast(other, tf.float32) - tf.cast(own, tf.float32))
        return lanes, folded(distance, 32)

    def _correct_kernel(
        self,
        own: tf.Tensor,
        other: tf.Tensor,
        accepted: tf.Tensor,
        onto: tf.Tensor | None,
    ) -> tf.Tensor:
        mine, theirs = (tf.cast(rows, tf.float32) for rows in (own, other))
        half = np.float32(0.5)  # halves first: the difference of two large numbers may overflow
        correction = tf.where(accepted[:, None], theirs * half - mine * half, np.float32(0))
        return correction if onto is None else in_blocks(onto) + correction


def _rows(encoded: Encoded) -> tf.Tensor:
    return tf.reshape(encoded.payload, [-1, BLOCK])


def _mixed(numbers: tf.Tensor) -> tf.Tensor:
    """The bits as uint32, stirred: every bit changes about half of the result.

    A flipped sign bit alone is 2^31 times an odd weight: two of them would cancel.
    """
    bits = tf.bitcast(numbers, tf.uint32 if numbers.dtype == tf.float32 else tf.uint16)
    bits = tf.cast(bits, tf.uint32)
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint32(16)))
    bits *= np.uint32(0x7FEB352D)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint32(15)))
