"""The numbers of an exchange: what each side encodes, verifies, corrects and learns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from swarm_tf.codec import Codec, Encoded, Lattice, Width, blocks_of, build
from swarm_tf.codec.base import Bools, Floats
from swarm_tf.exchange import Reason
from swarm_tf.published import Published

_NO_SCALES = np.zeros(0, np.float32)


class Averaging:
    """Averages the published model with a partner's.

    The initiator calls `offer`, sends that, and calls `conclude` with the reply; the responder
    calls `answer`. After both, their corrections are exact opposites.

    Args:
      lengths: weights in each chunk.
      codec: how chunks travel; the first exchange of a fresh lattice is exact.
      exact: chunks that always travel as float32.
      one_sided: only the initiator changes (mode "pull").
    """

    def __init__(
        self, lengths: Sequence[int], codec: Codec, exact: Collection[int] = (), *, one_sided: bool
    ) -> None:
        self.lengths, self.one_sided = list(lengths), one_sided
        self.published = Published(lengths)
        self.codec = codec
        self._exact_chunks = frozenset(exact)
        # As of the last exchange: measured while encoding, but wanted before.
        self._magnitudes: dict[int, Floats] = {}

    def warm_up(self) -> None:
        """Compile the kernels on the published model, so that no exchange waits for that."""
        first = {length: chunk for chunk, length in reversed(list(enumerate(self.lengths)))}
        for chunk in first.values():
            (base,) = self.published.terms(chunk)
            scales = np.ones(blocks_of(self.lengths[chunk]), np.float32)
            for codec in set(self._codecs(chunk).values()):
                onto = None
                for _ in range(2):
                    terms = (base,) if onto is None else (base, onto)
                    own = codec.encode(terms, 0, scales)
                    onto = codec.decode(own, own, onto).correction

    def offer(self, chunk: int, seed: int) -> Encoded:
        """The initiator's side of `chunk`, to be kept until the reply comes.

        If it is not `finite` it may not travel.
        """
        scales, steps = self.published.scales[chunk], _NO_SCALES
        codec = self._codecs(chunk)[scales.width]
        if isinstance(codec, Lattice):
            steps = scales.steps(codec.bits, self._magnitudes[chunk])
        return self._encode(chunk, codec, seed, steps)

    def answer(self, chunk: int, offer: Encoded) -> tuple[Encoded, Bools] | Reason:
        """The responder's side of `chunk` and the blocks that it has averaged, or why not."""
        if chunk >= len(self.lengths) or offer.length != self.lengths[chunk]:
            return Reason.OTHER_MODEL
        codec = self._codec_of(chunk, offer)
        if codec is None:
            return Reason.OTHER_CODEC
        own = self._encode(chunk, codec, offer.seed, offer.scales)
        if not own.finite:
            return Reason.NOT_FINITE
        if self.one_sided:
            return own, own.usable
        return own, self._average(chunk, codec, own, offer)

    def conclude(
        self, chunk: int, own: Encoded, reply: Encoded, accepted: Bools, *, strict: bool
    ) -> Bools | None:
        """Apply the initiator's correction; returns the blocks that were averaged.

        None, with `strict`, if the reply is damaged: the partner averaged blocks that cannot be
        read here, so it must be asked for once more.
        """
        codec = self._codec_of(chunk, own)
        assert codec is not None
        if strict:
            readable = codec.decode(own, reply).accepted
            if (accepted & own.usable & ~readable).any():
                return None
        return self._average(chunk, codec, own, reply, accepted)

    def _encode(self, chunk: int, codec: Codec, seed: int, steps: Floats) -> Encoded:
        own = codec.encode(self.published.terms(chunk), seed, steps)
        if own.finite:
            self._magnitudes[chunk] = own.magnitude
        return own

    def _codecs(self, chunk: int) -> dict[Width, Codec]:
        exact = build("float32")
        if chunk in self._exact_chunks:
            return dict.fromkeys(Width, exact)
        if not isinstance(self.codec, Lattice):
            return dict.fromkeys(Width, self.codec)
        wide = build("lattice", self.codec.wider) if self.codec.wider else exact
        return {Width.EXACT: exact, Width.WIDE: wide, Width.USUAL: self.codec}

    def _codec_of(self, chunk: int, encoded: Encoded) -> Codec | None:
        return {c.wire_id: c for c in self._codecs(chunk).values()}.get(encoded.wire_id)

    def _average(
        self, chunk: int, codec: Codec, own: Encoded, other: Encoded, allowed: Bools | None = None
    ) -> Bools:
        """Correct the published chunk and learn from it; returns the blocks averaged."""
        decoded = self.published.correct(
            chunk, lambda onto: codec.decode(own, other, onto, allowed)
        )
        scales = self.published.scales[chunk]
        if not isinstance(codec, Lattice):
            scales.exact(decoded.spread)
        elif codec is self.codec:
            scales.update(codec.bits, own.scales, decoded.accepted, decoded.spread)
        else:
            scales.wide(decoded.accepted, decoded.spread)
        return decoded.accepted
