"""What every codec shares: blocks, the dither and checksum keys, and the three methods.

A codec turns a vector into bytes and, from two encodings of two nearby vectors, finds the
correction that moves each to their average. It knows no networking and keeps no state.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

BLOCK = 1024
"""Weights that share a scale and a checksum."""

FLOAT32_DIGITS = 2.0**-22
"""A lattice step below this share of a block's largest magnitude has no float32 digits left."""

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint32]


def blocks_of(length: int) -> int:
    """Number of blocks that hold `length` weights; the last one may be partly empty."""
    return -(-length // BLOCK)


@dataclass
class Encoded:
    """One side of an exchange of one chunk of the model, ready to travel.

    Attributes:
      wire_id: the codec that made it (`Codec.wire_id`).
      length: weights in the chunk.
      seed: exchange seed, chosen by the initiator; both sides derive the same dither from it.
      scales: float32 [blocks], the lattice step of each block; empty for the float codecs.
      checksums: uint32 [words, blocks].
      payload: what travels, in the codec's `dtype`: a tensor on the model's device, or an array
        off the wire.
      usable: bool [blocks], False where this side could not represent its own weights. It stays
        at home; the checksum of such a block is spoiled so that the partner skips it too.
      numbers: the payload as the codec computes with it, where that differs (unpacked).
    """

    wire_id: int
    length: int
    seed: int
    scales: Floats
    checksums: Words
    payload: tf.Tensor | npt.NDArray[Any]
    usable: Bools
    numbers: tf.Tensor | None = None

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payload on the wire."""
        dtype = tf.as_dtype(self.payload.dtype)
        return int(self.payload.shape[0]) * int(dtype.size)

    def question(self) -> Encoded:
        """The same without its payload: what a node sends that only wants to read."""
        dtype = tf.as_dtype(self.payload.dtype).as_numpy_dtype
        return dataclasses.replace(self, payload=np.zeros(0, dtype), numbers=None)


class Codec(ABC):
    """Three small methods: `encode` both sides, `verify` the partner's, find the `correct`ion."""

    wire_id: int
    dtype: tf.DType
    words: int
    """What a partner must know to read a message: identity, payload dtype, checksum words."""

    @abstractmethod
    def payload_length(self, length: int) -> int:
        """Elements of the payload of a chunk of `length` weights."""

    @abstractmethod
    def encode(
        self, terms: Sequence[tf.Tensor], seed: int, scales: Floats, magnitude: Floats
    ) -> Encoded:
        """Encode the sum of `terms` (float32 [length] each; one or more).

        Args:
          terms: the communication copy as published, and the corrections on top of it.
          seed: exchange seed.
          scales: float32 [blocks]; ignored by codecs without a lattice.
          magnitude: float32 [blocks], largest |weight| of each block (`magnitude`); finite.
        """

    @abstractmethod
    def verify(self, own: Encoded, other: Encoded) -> tuple[Bools, Floats]:
        """Which blocks of `other` decode for certain, and the mean |difference| in each.

        Returns:
          accepted, bool [blocks], and spread, float32 [blocks]. Without corruption on the wire
          both sides of an exchange find the same `accepted`, each on its own.
        """

    @abstractmethod
    def correct(
        self, own: Encoded, other: Encoded, accepted: Bools, onto: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The correction (other - own)/2 in accepted blocks and 0 elsewhere, added to `onto`.

        The partner's correction is the exact opposite: the mean of both models is unchanged.
        """


def magnitude(terms: Sequence[tf.Tensor]) -> Floats:
    """Largest |weight| of each block of the sum of `terms`: float32 [blocks]; NaN shows as NaN."""
    if terms[0].shape[0] == 0:
        return np.zeros(0, np.float32)
    lanes: Floats = _magnitude_lanes(tuple(terms)).numpy()
    largest: Floats = lanes.max(axis=1)  # np.max carries NaN through
    return largest


@tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
def _magnitude_lanes(terms: tuple[tf.Tensor, ...]) -> tf.Tensor:
    # The bits of |x| order as |x| does, with NaN above all; a maximum of floats may lose a NaN.
    bits = tf.bitcast(tf.abs(in_blocks(tf.add_n(terms))), tf.int32)
    # XLA reduces a long row one scalar at a time; 64 lanes side by side vectorise.
    largest = tf.reduce_max(tf.reshape(bits, [-1, BLOCK // 64, 64]), axis=1)
    return tf.bitcast(largest, tf.float32)


def in_blocks(vector: tf.Tensor) -> tf.Tensor:
    """[length] -> [blocks, BLOCK], the tail filled with zeros."""
    length = vector.shape[0]
    missing = blocks_of(length) * BLOCK - length
    if missing:
        vector = tf.pad(vector, [[0, missing]])
    return tf.reshape(vector, [-1, BLOCK])


def folded(values: tf.Tensor, lanes: int) -> tf.Tensor:
    """[blocks, BLOCK] -> [blocks, lanes], partial sums by halving, which XLA vectorises."""
    while values.shape[1] > lanes:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values


def dither_keys(seed: int, blocks: int) -> Words:
    """Two random words a block, the same on both sides of an exchange: uint32 [blocks, 2].

    They key the multiply-shift hash (a*k + b) mod 2^32 of the position k in the block, which is
    strongly universal in its high bits (Dietzfelbinger 1996): each dither is uniform, any two are
    independent. That is all that the unbiasedness and the variance bound of the codec need.
    """
    raw = np.random.Philox(key=seed).random_raw(blocks)
    return raw.view(np.uint32).reshape(blocks, 2)


def _checksum_weights() -> Words:
    generator = np.random.Generator(np.random.Philox(key=0xC0DEC))
    high = generator.integers(2**21, size=(2, BLOCK), dtype=np.uint32) << np.uint32(11)
    low = np.stack([generator.permutation(BLOCK) for _ in range(2)]).astype(np.uint32)
    return high | (low << np.uint32(1)) | np.uint32(1)


CHECKSUM_WEIGHTS = _checksum_weights()
"""uint32 [2, BLOCK]. Odd: a single wrong integer always changes the sum mod 2^32. All different
in their low 11 bits: so do two wrong by opposite amounts, up to 2^21."""


def checksum_weights(keys: tf.Tensor, word: int) -> tf.Tensor:
    """Odd weights of one checksum word, varied from exchange to exchange: uint32 [blocks, BLOCK].

    Not the dither's hash itself: it is linear in the position, so errors such as +1, -2, +1 in a
    row would cancel in every exchange.
    """
    even = tf.bitwise.bitwise_and(keys[:, 1:2], np.uint32(0xFFFFFFFE))
    return tf.bitwise.bitwise_xor(tf.constant(CHECKSUM_WEIGHTS[word])[None], even)
