"""A channel: how one chunk of the model travels, and what its codec has learned on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from swarm_tf.codec.base import Bools, Codec, Decoded, Encoded, Floats, blocks_of

NO_SCALES = np.zeros(0, np.float32)


class Channel:
    """Encodes and decodes one chunk with a codec that has nothing to learn.

    An initiator sends a chunk once, or, if `retries` says so, once more as attempt 1. All methods
    belong to the thread that communicates.

    Args:
      codec: one for each attempt.
      length: weights in the chunk.
    """

    def __init__(self, codecs: Sequence[Codec], length: int) -> None:
        self.codecs, self.length = tuple(codecs), length
        self._by_wire_id = {codec.wire_id: codec for codec in codecs}

    def offer(self, terms: Sequence[tf.Tensor], seed: int, attempt: int) -> Encoded:
        """The initiator's side, to be kept until the reply comes. Unless finite it may not travel.

        Args:
          terms: see `Codec.encode`.
          seed: of the dither.
          attempt: 0, or 1 for what `retries`.
        """
        return self.codecs[attempt].encode(terms, seed, NO_SCALES)

    def answer(self, terms: Sequence[tf.Tensor], offer: Encoded) -> Encoded:
        """The responder's side, on the lattice of an offer that `fits`."""
        return self._by_wire_id[offer.wire_id].encode(terms, offer.seed, offer.scales)

    def fits(self, encoded: Encoded, attempt: int) -> bool:
        """Whether what came over the wire can be of this chunk at all."""
        return attempt < len(self.codecs) and encoded.length == self.length

    def readable(self, encoded: Encoded, *, question: bool = False) -> bool:
        """Whether what came over the wire has the form of one of this channel's codecs.

        Args:
          question: it has no payload; see `Encoded.question`.
        """
        codec = self._by_wire_id.get(encoded.wire_id)
        return codec is not None and codec.fits(encoded, question=question)

    def decode(
        self,
        own: Encoded,
        other: Encoded,
        onto: tf.Tensor | None = None,
        allowed: Bools | None = None,
    ) -> Decoded:
        """The correction to the own side; nothing is learned. See `Codec.decode`."""
        return self._by_wire_id[own.wire_id].decode(own, other, onto, allowed)

    def learn(self, own: Encoded, decoded: Decoded) -> None:
        """Take in what an exchange has shown."""

    def retries(self, attempt: int, accepted: Bools) -> bool:
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
