"""The two interfaces: a codec encodes and decodes vectors, a channel keeps the state of a chunk.

From two encodings of two nearby vectors a codec finds the correction that moves each to their
average. It knows no networking and keeps no state. A channel is what one chunk of a model travels
through: it keeps what is learned on the way, and decides how the chunk is offered.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from swarm_tf.codec.kernels import BLOCK, Bools, Floats, Words, blocks_of, weights_in_blocks

NO_SCALES = np.zeros(0, np.float32)
NAME_BYTES = 21
"""Longest name of a codec, in bytes. With 21 the header of a message is a multiple of 8."""


@dataclass
class Encoded:
    """One side of an exchange of one chunk of the model, ready to travel.

    Attributes:
      codec: the one that made it (`Codec.wire_name`).
      length: weights in the chunk.
      seed: exchange seed, chosen by the initiator; both sides derive the same dither from it.
      scales: what else the partner needs, one float32 a block (the lattice's step sizes), or
        `NO_SCALES`.
      checksums: uint32 [words, blocks].
      payload: encoded weights, in the codec's `dtype`, a row for each block.

    The side that encoded also keeps
      magnitude: float32 [blocks], largest |weight| of each block; NaN shows as NaN.
      usable: bool [blocks], False where it could not represent its own weights. `encode` makes the
        checksum of such a block wrong, so that the partner skips it too.
    """

    codec: str
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

    def without_payload(self) -> Encoded:
        """The same without payload, as a node sends it that only reads its partner's model."""
        return dataclasses.replace(self, payload=tf.zeros([0, 0], self.payload.dtype))


@dataclass
class Decoded:
    """What one side decodes from the partner's side.

    Without corruption on the wire both sides of an exchange find the same `accepted` and exactly
    opposite corrections, each on its own: the mean of both models is unchanged.

    Attributes:
      accepted: bool [blocks], those decoded reliably (and allowed).
      spread: float32 [blocks], mean |difference|; only where accepted does it mean anything.
      correction: float32 [blocks, BLOCK]: (other - own)/2 in accepted blocks and 0 elsewhere, on
        top of `onto`.
    """

    accepted: Bools
    spread: Floats
    correction: tf.Tensor


class Codec(ABC):
    """`encode`s either side and `decode`s the partner's. It has no state: see `channel`.

    A subclass sets the constants below and implements `encode` and `_read`. Both sides of an
    exchange must find exactly opposite corrections, in float32. Beware of a*b - c*d: XLA may fuse
    it so that one product is not rounded. Differences of integers, or of halves of floats, are
    safe. Functions that XLA compiles are a `kernels.Kernel` each.

    Attributes:
      name: as in `codec=NAME`; each class has its own.
      choices: the bits per weight that a user may choose; empty if there is no choice.
      bits: the ones chosen; 0 if there is no choice.
      dtype: type of the payload's numbers, integer or floating.
      words: number of uint32 words in the checksum of a block.
      row_length: how many numbers of payload a block has.
    """

    name: ClassVar[str]
    choices: ClassVar[tuple[int, ...]] = ()
    bits: int = 0
    dtype: tf.DType
    words: int
    row_length: int

    @classmethod
    def build(cls, bits: int) -> Codec:
        """The codec with so many bits per weight; `bits` is ignored where there is no choice."""
        return cls()

    @property
    def wire_name(self) -> str:
        """The codec's name in messages, with its bits: ASCII, at most `NAME_BYTES`."""
        return f"{self.name}{self.bits}" if self.bits else self.name

    def channel(self, length: int) -> Channel:
        """What keeps the state of one chunk of `length` weights."""
        return Channel([self], length)

    @abstractmethod
    def encode(self, terms: Sequence[tf.Tensor], seed: int, scales: Floats) -> Encoded:
        """Encode the sum of `terms`; an empty one, of length 0, too.

        Args:
          terms: the communication copy as published, float32 [length], and the corrections on
            top of it, float32 [blocks, BLOCK], if there are any.
          seed: of the exchange; `decode` must use that of its own side.
          scales: those of the channel, float32 [blocks], or `NO_SCALES`; where this side answers,
            those of the initiator. A codec may ignore them and compute its own.

        Returns:
          This side. `magnitude` is exact. The padding behind the last weight must decode to 0.
        """

    def fits(self, encoded: Encoded, *, without_payload: bool = False) -> bool:
        """Whether a received encoding has the form that this codec gives it.

        Args:
          without_payload: the form of `Encoded.without_payload`.
        """
        blocks = blocks_of(encoded.length)
        shape = tuple(encoded.payload.shape)
        return (
            encoded.codec == self.wire_name
            and encoded.checksums.shape == (self.words, blocks)
            and (0 in shape if without_payload else shape == (blocks, self.row_length))
            and tf.as_dtype(encoded.payload.dtype) == self.dtype
            and self.scales_fit(encoded.scales, blocks)
        )

    def scales_fit(self, scales: Floats, blocks: int) -> bool:
        """Whether received scales can be this codec's; here, that there are none.

        A codec that sends scales overrides it. Those of unusable blocks must fit too.
        """
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
        """The correction to this side, whose `length` is above 0.

        Args:
          own, other, onto: see `decode`; `other` has no `magnitude` and no `usable`.
          allowed: bool [blocks], where the correction may be other than 0.

        Returns:
          `correction` and `accepted` as in `Decoded`, and the sum of |difference| in each block,
          float32 [blocks], a NumPy array.
        """


class Channel:
    """Encodes and decodes one chunk with a codec that has nothing to learn.

    An initiator sends a chunk once, or, if `needs_exact_retry` says so, once more as attempt 1.
    Only the communication thread calls its methods.

    Args:
      codecs: one for each attempt.
      length: weights in the chunk.
    """

    def __init__(self, codecs: Sequence[Codec], length: int) -> None:
        self.codecs, self.length = tuple(codecs), length
        self._named = {codec.wire_name: codec for codec in codecs}

    def offer(self, terms: Sequence[tf.Tensor], seed: int, attempt: int) -> Encoded:
        """The initiator's side, to be kept until the reply comes. Send it only if it is `finite`.

        Args:
          terms: see `Codec.encode`.
          seed: of the dither.
          attempt: 0, or 1 when it is sent once more; see `needs_exact_retry`.
        """
        return self.codecs[attempt].encode(terms, seed, NO_SCALES)

    def answer(self, terms: Sequence[tf.Tensor], offer: Encoded) -> Encoded:
        """The responder's side, encoded as an offer that is `readable`."""
        return self._named[offer.codec].encode(terms, offer.seed, offer.scales)

    def is_of_this_chunk(self, encoded: Encoded, attempt: int) -> bool:
        """Whether a received encoding has this chunk's length, and such an attempt exists."""
        return attempt < len(self.codecs) and encoded.length == self.length

    def readable(self, encoded: Encoded, *, without_payload: bool = False) -> bool:
        """Whether a received encoding has the form of one of this channel's codecs.

        Args:
          without_payload: the form of `Encoded.without_payload`.
        """
        codec = self._named.get(encoded.codec)
        return codec is not None and codec.fits(encoded, without_payload=without_payload)

    def decode(
        self,
        own: Encoded,
        other: Encoded,
        onto: tf.Tensor | None = None,
        allowed: Bools | None = None,
    ) -> Decoded:
        """The correction to this side; nothing is learned. See `Codec.decode`."""
        return self._named[own.codec].decode(own, other, onto, allowed)

    def learn(self, own: Encoded, decoded: Decoded) -> None:
        """Update the state from an exchange; this channel has none."""

    def state(self) -> dict[str, Any]:
        """What this channel has learned, for a checkpoint; this one, nothing."""
        return {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""

    def needs_exact_retry(self, attempt: int, accepted: Bools) -> bool:
        """Whether the chunk travels once more at once; the same answer on both sides.

        Args:
          accepted: bool [blocks], as the responder sent it.
        """
        return False

    def warm_up(self, base: tf.Tensor) -> None:
        """Compile the kernels for this length, so that no exchange waits for that."""
        scales: Floats = np.ones(blocks_of(self.length), np.float32)
        for codec in self.codecs:
            onto = None
            for _ in range(2):
                terms = (base,) if onto is None else (base, onto)
                own = codec.encode(terms, 0, scales)
                onto = codec.decode(own, own, onto).correction
