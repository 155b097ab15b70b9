"""Plain numbers: float32 (exact), and bfloat16 and float16 rounded with the shared dither.

With one dither on both sides, two weights that differ by less than a step of the format still
converge on average; rounded to the nearest, they would not.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tensorflow as tf

from swarm_tf.codec.base import NO_SCALES, Codec, Encoded
from swarm_tf.codec.groups import in_groups
from swarm_tf.codec.kernels import (
    BLOCK,
    Bools,
    Floats,
    Kernel,
    block_sums,
    blocks_of,
    checksum_weights,
    dither_keys,
    in_blocks,
    magnitude_of_blocks,
    partial_magnitude,
    position_hash,
)


@dataclass(frozen=True)
class Format:
    """A floating-point format: `fraction` bits after the point, numbers up to `largest`.

    Below 2^min_exponent its steps stay as large as they are there.
    """

    dtype: tf.DType
    fraction: int
    min_exponent: int
    largest: float


FLOAT32 = Format(tf.float32, 23, -126, float(np.finfo(np.float32).max))
# The grid of bfloat16 ends where its reciprocal would leave float32's range.
BFLOAT16 = Format(tf.bfloat16, 7, -119, 2.0**127)
FLOAT16 = Format(tf.float16, 10, -14, 65504.0)


class Float(Codec):
    """Every weight as one number of `format`; `scales` are not used."""

    format: ClassVar[Format]

    def __init__(self) -> None:
        self.dtype = self.format.dtype
        self.words, self.row_length = 1, BLOCK
        self._encode = Kernel(self._encode_kernel)
        self._decode = Kernel(self._decode_kernel)

    def encode(self, terms: Sequence[tf.Tensor], seed: int, scales: Floats) -> Encoded:
        length = int(terms[0].shape[0])
        if length:
            payload, largest, sums = self._encode(
                tuple(terms), dither_keys(seed, blocks_of(length))
            )
            magnitude = magnitude_of_blocks(largest)
        else:
            payload, sums = tf.zeros([0, BLOCK], self.dtype), np.zeros(0, np.uint32)
            magnitude = np.zeros(0, np.float32)
        # float16 ends at 65,504; the dither may add one step.
        usable = magnitude <= self.format.largest * (1 - 2.0**-self.format.fraction)
        checksums = np.where(usable, sums, ~np.asarray(sums))[None]
        return Encoded(
            self.wire_name, length, seed, NO_SCALES, checksums, payload, magnitude, usable
        )

    def _read(
        self, own: Encoded, other: Encoded, allowed: Bools, onto: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, Floats]:
        keys = dither_keys(own.seed, blocks_of(own.length))
        correction, accepted, distance = self._decode(
            own.payload, other.payload, keys, other.checksums[0], allowed, onto
        )
        return correction, accepted, np.asarray(distance, np.float32)

    def _encode_kernel(
        self, terms: tuple[tf.Tensor, ...], keys: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def rounded(keys: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
            return tf.cast(self._dithered(x, keys), self.format.dtype)

        def sums(keys: tf.Tensor, *terms: tf.Tensor) -> Sequence[tf.Tensor]:
            x = tf.add_n(terms)
            bits = _bits(rounded(keys, x))
            checksums = block_sums(_mixed(bits) * checksum_weights(keys, 0))
            return partial_magnitude(x), checksums

        blocks = [in_blocks(term) for term in terms]
        magnitude, checksums = in_groups(sums, keys, *blocks)
        return rounded(keys, tf.add_n(blocks)), magnitude, checksums

    def _decode_kernel(
        self,
        own: tf.Tensor,
        other: tf.Tensor,
        keys: tf.Tensor,
        checksums: tf.Tensor,
        allowed: tf.Tensor,
        onto: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def sums(own: tf.Tensor, other: tf.Tensor, keys: tf.Tensor) -> Sequence[tf.Tensor]:
            found = block_sums(_mixed(_bits(other)) * checksum_weights(keys, 0))
            distance = tf.abs(tf.cast(other, tf.float32) - tf.cast(own, tf.float32))
            return block_sums(distance), found

        distance, found = in_groups(sums, own, other, keys)
        accepted = tf.logical_and(allowed, found == checksums)
        # Halves first: the difference of two large numbers may overflow.
        mine, theirs = (tf.cast(rows, tf.float32) * np.float32(0.5) for rows in (own, other))
        correction = tf.where(accepted[:, None], theirs - mine, np.float32(0))
        return correction if onto is None else onto + correction, accepted, distance

    def _dithered(self, x: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """x rounded to the format's own grid, up with the probability of the remainder."""
        if self.format.dtype == tf.float32:
            return x
        hashed = position_hash(keys)
        dither = tf.cast(tf.bitwise.right_shift(hashed, np.uint32(8)), tf.float32) * 2.0**-24
        exponent = tf.bitwise.bitwise_and(tf.bitcast(x, tf.uint32), np.uint32(0x7F800000))
        smallest = np.uint32((self.format.min_exponent + 127) << 23)
        exponent = tf.maximum(exponent, smallest)
        power = tf.bitcast(exponent, tf.float32)  # 2^floor(log2 |x|)
        inverse = tf.bitcast(np.uint32(254 << 23) - exponent, tf.float32)
        grid = np.float32(2.0**self.format.fraction)
        return tf.floor(x * inverse * grid + dither) * (power / grid)


class Float32(Float):
    """Exact."""

    name = "float32"
    format = FLOAT32


class BFloat16(Float):
    """Rounded to bfloat16 with the shared dither."""

    name = "bfloat16"
    format = BFLOAT16


class Float16(Float):
    """Rounded to float16 with the shared dither; ends at 65,504."""

    name = "float16"
    format = FLOAT16


@functools.cache
def float32() -> Float:
    """The exact codec; one instance for all, since its kernels are compiled."""
    return Float32()


def _bits(numbers: tf.Tensor) -> tf.Tensor:
    """The bits as unsigned integers, which XLA moves unchanged."""
    return tf.bitcast(numbers, tf.uint32 if numbers.dtype == tf.float32 else tf.uint16)


def _mixed(bits: tf.Tensor) -> tf.Tensor:
    """The bits of a number as uint32, mixed: every bit changes about half of the result.

    A flipped sign bit alone is 2^31 times an odd weight: two of them would cancel.
    """
    bits = tf.cast(bits, tf.uint32)
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint32(16)))
    bits *= np.uint32(0x7FEB352D)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint32(15)))
