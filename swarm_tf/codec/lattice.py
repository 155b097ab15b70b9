"""The modular lattice codec: send k mod 2^b, read it against the receiver's own model.

With a step s and a dither u in [0, 1) shared by both sides, a weight x becomes the integer
k = floor(x/s + u). Only q = k mod 2^b travels. The partner, who has its own k' from a nearby x',
knows k - k' mod 2^b, and so k - k' itself as long as |k - k'| < 2^(b-1).
The correction s (k - k')/2 is then

- exactly antisymmetric: both sides compute it from the same two integers;
- unbiased over u: E[s (k - k')] = x - x';
- of variance at most |d| (s - |d|) a coordinate for d = x - x', |d| < s, which vanishes with d.

Davies et al. 2021, "New bounds for distributed mean estimation and variance reduction";
Lu and De Sa 2020, "Moniqua". Whether |k - k'| was small enough is not left to hope: a weighted
checksum over the full integers shows every block that was read wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from swarm_tf.codec import packing
from swarm_tf.codec.base import (
    BLOCK,
    FLOAT32_DIGITS,
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
from swarm_tf.config import BITS
from swarm_tf.errors import UsageError

# Adding 1.5 * 2^23 to a float32 below 2^22 rounds it to an integer that stands in the low bits:
# one addition instead of floor, convert and clamp.
_ROUNDER = np.float32(1.5 * 2**23)
_ROUNDER_BITS = _ROUNDER.view(np.uint32)
_SPOIL = np.uint32(0x5BD1E995)


class Lattice(Codec):
    """`bits` a weight: 2 to 8, or 16."""

    def __init__(self, bits: int) -> None:
        if bits not in BITS:
            raise UsageError(f"swarm.bits={bits} must be one of {', '.join(map(str, BITS))}")
        self.bits = bits
        self.wire_id = 16 + bits
        self.dtype = tf.uint16 if bits == 16 else tf.uint8
        self.words = 2 if bits > 8 else 1  # an error is a multiple of 2^b: 32 - b bits a word
        self._encode = tf.function(self._encode_kernel, jit_compile=True, autograph=False)
        self._compare = tf.function(self._compare_kernel, jit_compile=True, autograph=False)
        self._correct = tf.function(self._correct_kernel, jit_compile=True, autograph=False)

    def payload_length(self, length: int) -> int:
        return blocks_of(length) * BLOCK * min(self.bits, 8) // 8

    def encode(
        self, terms: Sequence[tf.Tensor], seed: int, scales: Floats, magnitude: Floats
    ) -> Encoded:
        length = int(terms[0].shape[0])
        blocks = blocks_of(length)
        if blocks:
            inverse, keys = np.float32(1) / scales, dither_keys(seed, blocks)
            numbers, lanes = self._encode(tuple(terms), inverse, keys)
            sums = _host_sums(lanes)
        else:
            numbers = tf.zeros([0, BLOCK], self.dtype)
            sums = np.zeros((self.words, 0), np.uint32)
        payload = tf.reshape(_pack(numbers, self.bits) if self.bits < 8 else numbers, [-1])
        # Beyond 2^22 steps the integers of the kernel end.
        usable = magnitude * FLOAT32_DIGITS <= scales
        sums = np.where(usable, sums, sums + _SPOIL)
        return Encoded(self.wire_id, length, seed, scales, sums, payload, usable, numbers)

    def verify(self, own: Encoded, other: Encoded) -> tuple[Bools, Floats]:
        blocks = blocks_of(own.length)
        if blocks == 0:
            return np.zeros(0, np.bool_), np.zeros(0, np.float32)
        keys = dither_keys(own.seed, blocks)
        lanes, spread = self._compare(self._numbers(own), self._numbers(other), keys)
        expected = own.checksums + _host_sums(lanes)
        accepted: Bools = (expected == other.checksums).all(axis=0) & own.usable
        weights = np.full(blocks, BLOCK, np.float32)
        weights[-1] = own.length - (blocks - 1) * BLOCK
        steps = spread.numpy().sum(axis=1, dtype=np.float32)
        return accepted, (steps / weights * own.scales).astype(np.float32)

    def correct(
        self, own: Encoded, other: Encoded, accepted: Bools, onto: tf.Tensor | None = None
    ) -> tf.Tensor:
        if own.length == 0:
            return tf.zeros([0])
        half_steps = np.where(accepted, own.scales * np.float32(0.5), np.float32(0))
        rows = self._correct(self._numbers(own), self._numbers(other), half_steps, onto)
        return tf.reshape(rows, [-1])[: own.length]

    def _numbers(self, encoded: Encoded) -> tf.Tensor:
        if encoded.numbers is None:
            rows = tf.reshape(encoded.payload, [blocks_of(encoded.length), -1])
            encoded.numbers = _unpack(rows, self.bits) if self.bits < 8 else rows
        return encoded.numbers

    # The kernels. Packing has its own: fused with the arithmetic, XLA repeats that for each piece.
    # Rows of blocks in, rows of blocks out: XLA does not vectorise across a change of shape.

    def _encode_kernel(
        self, terms: tuple[tf.Tensor, ...], inverse: tf.Tensor, keys: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        integers = _lattice_points(in_blocks(tf.add_n(terms)), inverse, keys)
        lanes = [folded(integers * checksum_weights(keys, w), 128) for w in range(self.words)]
        low = tf.bitwise.bitwise_and(integers, np.uint32(2**self.bits - 1))
        return tf.cast(low, self.dtype), tf.stack(lanes)

    def _differences(self, own: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        """Steps from own to other, int32 [blocks, BLOCK]; 0 where it would be -2^(b-1)."""
        unsigned = other - own
        spare = unsigned.dtype.size * 8 - self.bits
        if spare:  # bring the sign bit to the top, and back below
            unsigned = tf.bitwise.left_shift(unsigned, tf.constant(spare, unsigned.dtype))
        signed = tf.int16 if self.bits == 16 else tf.int8
        steps = tf.cast(tf.bitcast(unsigned, signed), tf.int32)
        if spare:
            steps = tf.bitwise.right_shift(steps, np.int32(spare))
        # -2^(b-1) has no opposite: one side would accept what the other rejects. Read as 0 it
        # fails the checksum on both.
        return tf.where(steps == -(2 ** (self.bits - 1)), 0, steps)

    def _compare_kernel(
        self, own: tf.Tensor, other: tf.Tensor, keys: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        steps = self._differences(own, other)
        unsigned = tf.bitcast(steps, tf.uint32)
        lanes = [folded(unsigned * checksum_weights(keys, w), 128) for w in range(self.words)]
        return tf.stack(lanes), folded(tf.abs(steps), 32)

    def _correct_kernel(
        self,
        own: tf.Tensor,
        other: tf.Tensor,
        half_steps: tf.Tensor,
        onto: tf.Tensor | None,
    ) -> tf.Tensor:
        steps = tf.cast(self._differences(own, other), tf.float32)
        correction = steps * half_steps[:, None]
        if onto is not None:
            correction += in_blocks(onto)
        return correction


def _lattice_points(x: tf.Tensor, inverse: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """floor(x/s + u) as uint32 (two's complement) [blocks, BLOCK]; exact for |x/s| < 2^22."""
    position = tf.cast(tf.range(BLOCK), tf.uint32)[None]
    hashed = keys[:, 0:1] * position + keys[:, 1:2]
    # 23 random bits under the exponent of 1.0 make u + 1; minus 1.5 turns the rounding to the
    # nearest integer below into a floor.
    mantissa = tf.bitwise.right_shift(hashed, np.uint32(9))
    dither = tf.bitcast(tf.bitwise.bitwise_or(mantissa, np.uint32(0x3F800000)), tf.float32)
    rounded = (x * inverse[:, None] + (dither - np.float32(1.5))) + _ROUNDER
    return tf.bitcast(rounded, tf.uint32) - _ROUNDER_BITS


@tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
def _pack(numbers: tf.Tensor, bits: int) -> tf.Tensor:
    return packing.pack(numbers, bits)


@tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
def _unpack(rows: tf.Tensor, bits: int) -> tf.Tensor:
    return packing.unpack(rows, bits)


def _host_sums(lanes: tf.Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
    """Partial sums uint32 [words, blocks, lanes] -> [words, blocks], mod 2^32."""
    sums: np.ndarray[tuple[int, int], np.dtype[np.uint32]] = lanes.numpy().sum(
        axis=2, dtype=np.uint32
    )
    return sums
