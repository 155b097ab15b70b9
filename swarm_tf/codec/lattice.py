"""The modular lattice codec: send k mod 2^b, read it against the receiver's own model.

With a step s and a dither u in [0, 1) shared by both sides, a weight x becomes the integer
k = floor(x/s + u). Only q = k mod 2^b travels. The partner, who has its own k' from a nearby x',
knows k - k' mod 2^b, and so k - k' itself as long as |k - k'| < 2^(b-1).
The correction s (k - k')/2 is then

- exactly antisymmetric: both sides compute it from the same two integers;
- unbiased over u: E[s (k - k')] = x - x';
- of variance at most |d| (s - |d|) a coordinate for d = x - x', |d| < s, which vanishes with d.

Davies et al. 2021, "New bounds for distributed mean estimation and variance reduction";
Lu and De Sa 2020, "Moniqua". If |k - k'| is too large, the receiver reads a wrong integer; a
weighted checksum over the full integers shows every block where that happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from swarm_tf.codec import packing
from swarm_tf.codec.base import NO_SCALES, Channel, Codec, Decoded, Encoded
from swarm_tf.codec.floats import float32
from swarm_tf.codec.groups import in_groups
from swarm_tf.codec.kernels import (
    BLOCK,
    FLOAT32_DIGITS,
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
from swarm_tf.codec.scales import BlockScales, out_of_range
from swarm_tf.errors import UsageError

# Adding 1.5 * 2^23 to a float32 below 2^22 rounds it to an integer that stands in the low bits:
# one addition instead of floor, convert and clamp.
_ROUNDER = np.float32(1.5 * 2**23)
_ROUNDER_BITS = _ROUNDER.view(np.uint32)
BITS = (2, 3, 4, 5, 6, 7, 8, 16)
_SPOIL = np.uint32(0x5BD1E995)


class Lattice(Codec):
    """The lattice codec with `bits` per weight: 2 to 8, or 16."""

    name = "lattice"
    choices = BITS

    def __init__(self, bits: int) -> None:
        if bits not in BITS:
            raise UsageError(f"swarm.bits={bits} must be one of {', '.join(map(str, BITS))}")
        self.bits = bits
        self.dtype = tf.uint16 if bits == 16 else tf.uint8
        self.row_length = BLOCK * min(bits, 8) // 8
        self.words = 2 if bits > 8 else 1  # an error is a multiple of 2^b: 32 - b bits a word
        self._encode = Kernel(self._encode_kernel)
        self._decode = Kernel(self._decode_kernel)

    @classmethod
    def build(cls, bits: int) -> Codec:
        return cls(bits)

    def channel(self, length: int) -> Channel:
        """A channel that learns its step sizes."""
        return LatticeChannel(self, length)

    def encode(self, terms: Sequence[tf.Tensor], seed: int, scales: Floats) -> Encoded:
        length = int(terms[0].shape[0])
        if length:
            keys = dither_keys(seed, blocks_of(length))
            results = self._encode(tuple(terms), keys, scales)
            payload, largest, *sums = results
            checksums, magnitude = np.stack(sums), magnitude_of_blocks(largest)
        else:
            payload = tf.zeros([0, BLOCK * min(self.bits, 8) // 8], self.dtype)
            checksums, magnitude = np.zeros((self.words, 0), np.uint32), np.zeros(0, np.float32)
        # The kernel computes integers up to 2^22 steps.
        usable = magnitude * FLOAT32_DIGITS <= scales
        checksums = np.where(usable, checksums, checksums + _SPOIL)
        return Encoded(self.wire_name, length, seed, scales, checksums, payload, magnitude, usable)

    def scales_fit(self, scales: Floats, blocks: int) -> bool:
        return len(scales) == blocks and bool(np.isfinite(scales).all() and (scales > 0).all())

    def _read(
        self, own: Encoded, other: Encoded, allowed: Bools, onto: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, Floats]:
        expected = other.checksums - own.checksums
        keys = dither_keys(own.seed, blocks_of(own.length))
        correction, accepted, steps = self._decode(
            own.payload, other.payload, keys, own.scales, expected, allowed, onto
        )
        return correction, accepted, np.asarray(steps) * own.scales

    # The kernels: rows of blocks in, rows of blocks out, for XLA does not vectorise across a
    # change of shape.

    def _encode_kernel(
        self, terms: tuple[tf.Tensor, ...], keys: tf.Tensor, scales: tf.Tensor
    ) -> list[tf.Tensor]:
        def kernel(scales: tf.Tensor, keys: tf.Tensor, *terms: tf.Tensor) -> Sequence[tf.Tensor]:
            x = tf.add_n(terms)
            integers = _lattice_points(x, scales, keys)
            low = tf.bitwise.bitwise_and(integers, np.uint32(2**self.bits - 1))
            numbers = tf.cast(low, self.dtype)
            weighted = [integers * checksum_weights(keys, word) for word in range(self.words)]
            return numbers, partial_magnitude(x), *(block_sums(w) for w in weighted)

        blocks = [in_blocks(term) for term in terms]
        numbers, *rest = in_groups(kernel, scales, keys, *blocks)
        return [self._packed(numbers), *rest]

    def _decode_kernel(
        self,
        own: tf.Tensor,
        other: tf.Tensor,
        keys: tf.Tensor,
        scales: tf.Tensor,
        expected: tf.Tensor,
        allowed: tf.Tensor,
        onto: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def sums(own: tf.Tensor, other: tf.Tensor, keys: tf.Tensor) -> Sequence[tf.Tensor]:
            steps = self._differences(own, other)
            integers = tf.bitcast(steps, tf.uint32)
            weighted = [integers * checksum_weights(keys, word) for word in range(self.words)]
            return block_sums(tf.abs(steps)), *(block_sums(w) for w in weighted)

        own, other = self._unpacked(own), self._unpacked(other)
        distance, *found = in_groups(sums, own, other, keys)
        accepted = tf.logical_and(allowed, tf.reduce_all(tf.stack(found) == expected, axis=0))
        half_steps = tf.where(accepted, scales * np.float32(0.5), np.float32(0))
        correction = tf.cast(self._differences(own, other), tf.float32) * half_steps[:, None]
        return correction if onto is None else onto + correction, accepted, distance

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

    # Packing is kept apart: fused with the arithmetic, XLA repeats that for each piece.

    def _packed(self, numbers: tf.Tensor) -> tf.Tensor:
        if self.bits >= 8:
            return numbers
        (numbers,) = xla.optimization_barrier(numbers)
        return packing.pack(numbers, self.bits)

    def _unpacked(self, payload: tf.Tensor) -> tf.Tensor:
        if self.bits >= 8:
            return payload
        (numbers,) = xla.optimization_barrier(packing.unpack(payload, self.bits))
        return numbers


def _lattice_points(x: tf.Tensor, scales: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """floor(x/s + u) as uint32 (two's complement) [blocks, BLOCK]; exact for |x/s| < 2^22."""
    hashed = position_hash(keys)
    # 23 random bits under 1.0's exponent make u + 1. Subtracting 1.5 turns the rounding to the
    # nearest that follows into a floor.
    mantissa = tf.bitwise.right_shift(hashed, np.uint32(9))
    dither = tf.bitcast(tf.bitwise.bitwise_or(mantissa, np.uint32(0x3F800000)), tf.float32)
    inverse = (np.float32(1) / scales)[:, None]
    rounded = (x * inverse + (dither - np.float32(1.5))) + _ROUNDER
    return tf.bitcast(rounded, tf.uint32) - _ROUNDER_BITS


class LatticeChannel(Channel):
    """Learns the step sizes of its blocks; the first exchange, and a chunk out of range, are exact.

    If half of the blocks could not be read, since the partner is far away, the whole chunk is sent
    once more at once, as float32. Averaging only the other half would leave a rank that falls
    behind with a mixture of old and new weights.
    """

    def __init__(self, lattice: Lattice, length: int) -> None:
        self._lattice, self._exact = lattice, float32()
        super().__init__([lattice, self._exact], length)
        self.scales = BlockScales(blocks_of(length))
        self._magnitude: Floats = NO_SCALES  # of the last encoding; needed before the next one

    def offer(self, terms: Sequence[tf.Tensor], seed: int, attempt: int) -> Encoded:
        if attempt or not self.scales.known:
            return self._keep_magnitude(self._exact.encode(terms, seed, NO_SCALES))
        step_sizes = self.scales.step_sizes(self._lattice.bits, self._magnitude)
        return self._keep_magnitude(self._lattice.encode(terms, seed, step_sizes))

    def answer(self, terms: Sequence[tf.Tensor], offer: Encoded) -> Encoded:
        return self._keep_magnitude(super().answer(terms, offer))

    def _keep_magnitude(self, own: Encoded) -> Encoded:
        if own.finite:
            self._magnitude = own.magnitude
        return own

    def learn(self, own: Encoded, decoded: Decoded) -> None:
        if own.codec == self._lattice.wire_name:
            bits = self._lattice.bits
            self.scales.update(bits, own.scales, decoded.accepted, decoded.spread)
        else:
            self.scales.update_exact(decoded.spread)

    def state(self) -> dict[str, Any]:
        return {"scales": self.scales.state(), "magnitude": self._magnitude}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.scales.restore(saved["scales"])
        self._magnitude = saved["magnitude"]

    def needs_exact_retry(self, attempt: int, accepted: Bools) -> bool:
        return attempt == 0 and out_of_range(accepted)
