"""The two interfaces: a codec turns vectors into bytes and back, a channel has its state.

From two encodings of two nearby vectors a codec finds the correction that moves each to their
average. It knows no networking and keeps no state. A channel is what one chunk of a model travels
through: it keeps what is learned on the way, and decides how the chunk is offered.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import tensorflow as tf

from swarm_tf.codec.kernels import BLOCK, Bools, Floats, Words, blocks_of, weights_in_blocks

NO_SCALES = np.zeros(0, np.float32)
NAME_BYTES = 21
"""Of a codec's name in a message; so many leave the arrays behind the header aligned."""


@dataclass
class Encoded:
    """One side of an exchange of one chunk of the model, ready to travel.

    Attributes:
      codec: the one that made it (`Codec.wire_name`).
      length: weights in the chunk.
      seed: exchange seed, chosen by the initiator; both sides derive the same dither from it.
      scales: float32 [blocks], the lattice step of each block; empty for the float codecs.
      checksums: uint32 [words, blocks].
      payload: encoded weights, in the codec's `dtype`, a row for each block.

    The side that encoded also keeps
      magnitude: float32 [blocks], largest |weight| of each block; NaN shows as NaN.
      usable: bool [blocks], False where it could not represent its own weights; the checksum of
        such a block is made wrong, so that the partner skips it too.
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
    """`encode`s either side and `decode`s the partner's. Stateless: see `channel`.

    A subclass sets what a partner must know to read a message.

    Attributes:
      name: as in `codec=NAME`; each class has its own.
      bits: a weight, where the class has codecs of several widths, else 0.
      dtype: of the payload.
      words: of the checksum of a block.
      width: numbers of payload in a block.
    """

    name: ClassVar[str]
    bits: int = 0
    dtype: tf.DType
    words: int
    width: int

    @classmethod
    def build(cls, bits: int) -> Codec:
        """The codec with so many bits a weight, where the class has several widths."""
        return cls()

    @property
    def wire_name(self) -> str:
        """What a message calls the codec: ASCII, at most `NAME_BYTES`; by name and bits unique."""
        return f"{self.name}{self.bits}" if self.bits else self.name

    def channel(self, length: int) -> Channel:
        """What keeps the state of one chunk of `length` weights."""
        return Channel([self], length)

    @abstractmethod
    def encode(self, terms: Sequence[tf.Tensor], seed: int, scales: Floats) -> Encoded:
        """Encode the sum of `terms`.

        Args:
          terms: the communication copy as published, float32 [length], and the corrections on
            top of it, float32 [blocks, BLOCK].
          seed: exchange seed.
          scales: float32 [blocks]; ignored by codecs without a lattice.
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
            and (0 in shape if without_payload else shape == (blocks, self.width))
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
        """The responder's side, on the lattice of an offer that `fits`."""
        return self._named[offer.codec].encode(terms, offer.seed, offer.scales)

    def fits(self, encoded: Encoded, attempt: int) -> bool:
        """Whether a received encoding can be of this chunk at all."""
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
