"""What every codec shares: blocks, the dither and checksum keys, and the two methods.

A codec turns a vector into bytes and, from two encodings of two nearby vectors, finds the
correction that moves each to their average. It knows no networking and keeps no state.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

if TYPE_CHECKING:
    from swarm_tf.codec.channel import Channel

BLOCK = 1024
"""Weights that share a scale and a checksum."""

SEEDS = 2**62
"""The seed of an exchange is smaller; kernels take it as int64."""

_LANES = 32  # measured: XLA vectorises folds of up to 64 lanes

FLOAT32_DIGITS = 2.0**-22
"""A lattice step below this share of a block's largest magnitude has no float32 digits left."""

# Every kernel is compiled for a few shapes in a row. TensorFlow warns of that.
tf.get_logger().addFilter(lambda record: "_kernel of <swarm_tf.codec" not in record.getMessage())

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
      payload: what travels, in the codec's `dtype`, a row for each block.

    The side that encoded also keeps
      magnitude: float32 [blocks], largest |weight| of each block; NaN shows as NaN.
      usable: bool [blocks], False where it could not represent its own weights; the checksum of
        such a block is spoiled so that the partner skips it too.
    """

    wire_id: int
    length: int
    seed: int
    scales: Floats
    checksums: Words
    payload: tf.Tensor
    magnitude: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    usable: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payload on the wire."""
        return int(self.payload.shape.num_elements()) * int(self.payload.dtype.size)

    @property
    def finite(self) -> bool:
        """False if the weights of the side that encoded contain NaN or Inf."""
        return bool(np.isfinite(self.magnitude).all())

    def question(self) -> Encoded:
        """The same without its payload: what a node sends that only wants to read."""
        return dataclasses.replace(self, payload=tf.zeros([0, 0], self.payload.dtype))


@dataclass
class Decoded:
    """What one side makes of the partner's.

    Without corruption on the wire both sides of an exchange find the same `accepted` and exactly
    opposite corrections, each on its own: the mean of both models is unchanged.

    Attributes:
      accepted: bool [blocks], which decode for certain (and are allowed).
      spread: float32 [blocks], mean |difference|; only where accepted does it mean anything.
      correction: float32 [blocks, BLOCK]: (other - own)/2 in accepted blocks and 0 elsewhere, on
        top of `onto`.
    """

    accepted: Bools
    spread: Floats
    correction: tf.Tensor


class Codec(ABC):
    """`encode`s both sides, `decode`s the partner's; has no state, which a `channel` keeps."""

    wire_id: int
    dtype: tf.DType
    words: int
    width: int
    """What a partner must know to read a message: identity, payload dtype, checksum words, and
    numbers of payload a block."""

    @abstractmethod
    def channel(self, length: int) -> Channel:
        """What keeps the state of one chunk of `length` weights."""

    @abstractmethod
    def encode(self, terms: Sequence[tf.Tensor], seed: int, scales: Floats) -> Encoded:
        """Encode the sum of `terms`.

        Args:
          terms: the communication copy as published, float32 [length], and the corrections on
            top of it, float32 [blocks, BLOCK].
          seed: exchange seed.
          scales: float32 [blocks]; ignored by codecs without a lattice.
        """

    def fits(self, encoded: Encoded, *, question: bool = False) -> bool:
        """Whether what came over the wire has the form that this codec gives it.

        Args:
          question: it has no payload; see `Encoded.question`.
        """
        blocks = blocks_of(encoded.length)
        shape = tuple(encoded.payload.shape)
        return (
            encoded.wire_id == self.wire_id
            and encoded.checksums.shape == (self.words, blocks)
            and (0 in shape if question else shape == (blocks, self.width))
            and tf.as_dtype(encoded.payload.dtype) == self.dtype
            and self._scales_fit(encoded.scales, blocks)
        )

    def _scales_fit(self, scales: Floats, blocks: int) -> bool:
        return len(scales) == 0

    def decode(
        self,
        own: Encoded,
        other: Encoded,
        onto: tf.Tensor | None = None,
        allowed: Bools | None = None,
    ) -> Decoded:
        """Read the partner's side against our own, and find the correction to ours.

        Args:
          own, other: both sides' encodings of one exchange; `own` made by this side's `encode`.
          onto: float32 [blocks, BLOCK], an earlier correction to add to.
          allowed: bool [blocks], those to average, if not all that can be read.
        """
        if own.length == 0:
            return Decoded(np.zeros(0, np.bool_), np.zeros(0, np.float32), tf.zeros([0, BLOCK]))
        allowed = own.usable if allowed is None else allowed & own.usable
        correction, accepted, distance = self._read(own, other, allowed, onto)
        spread = distance / weights_in_blocks(own.length)
        return Decoded(np.asarray(accepted), spread, correction)

    @abstractmethod
    def _read(
        self, own: Encoded, other: Encoded, allowed: Bools, onto: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, Floats]:
        """Correction and accepted blocks as in `Decoded`, and the sum of |difference| in each."""


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
    (lanes,) = xla.optimization_barrier(_in_lanes(tf.add, values))  # two steps, or XLA makes one
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


def seed_tensor(seed: int) -> npt.NDArray[np.int64]:
    """An exchange's seed, below `SEEDS`, as `dither_keys` wants it: int64 [2]."""
    return np.array([seed, 0], np.int64)


def dither_keys(seed: tf.Tensor, blocks: int) -> tf.Tensor:
    """Two random words a block, the same on both sides of an exchange: uint32 [blocks, 2].

    They key the multiply-shift hash (a*k + b) mod 2^32 of the position k in the block, which is
    strongly universal in its high bits (Dietzfelbinger 1996): each dither is uniform, any two are
    independent. That is all that the unbiasedness and the variance bound of the codec need.
    """
    # Philox gives the same numbers on every device.
    return tf.random.stateless_uniform(
        [blocks, 2], seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )


def position_hash(keys: tf.Tensor) -> tf.Tensor:
    """The hash that `dither_keys` key, of every position: uint32 [blocks, BLOCK]."""
    position = tf.cast(tf.range(BLOCK), tf.uint32)[None]
    return keys[:, 0:1] * position + keys[:, 1:2]


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
