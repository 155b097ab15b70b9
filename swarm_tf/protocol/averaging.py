"""The numbers of an exchange: what each side encodes, verifies, corrects and learns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import tensorflow as tf

from swarm_tf.codec import Codec, Encoded, Lattice, blocks_of, build, too_many
from swarm_tf.codec.base import Bools, Floats
from swarm_tf.protocol.messages import Reason
from swarm_tf.protocol.replica import Published

_NO_SCALES = np.zeros(0, np.float32)


class Averaging:
    """Averages the published model with a partner's.

    The initiator calls `offer`, sends that, and calls `conclude` with the reply; the responder
    calls `answer`. After both, their corrections are exact opposites.

    Of n chunks, number n + k is chunk k once more and exact: see `again`.

    Args:
      lengths: weights in each chunk.
      codec: how chunks travel; the first exchange of a fresh lattice is exact.
      exact: chunks that always travel as float32.
      one_sided: only the initiator changes (mode "pull").

    Attributes:
      keeps_last, last: for a `Record`, what the last averaging did.
    """

    def __init__(
        self, lengths: Sequence[int], codec: Codec, exact: Collection[int] = (), *, one_sided: bool
    ) -> None:
        self.lengths, self.one_sided = list(lengths), one_sided
        self.published = Published(lengths)
        self.codec = codec
        self._exact, self._exact_chunks = build("float32"), frozenset(exact)
        self.keeps_last = False
        self.last: tuple[Bools, tf.Tensor] | None = None  # blocks averaged, and by what
        # As of the last exchange: measured while encoding, but wanted before.
        self._magnitudes: dict[int, Floats] = {}

    def warm_up(self) -> None:
        """Compile the kernels on the published model, so that no exchange waits for that."""
        first = {length: chunk for chunk, length in reversed(list(enumerate(self.lengths)))}
        for chunk in first.values():
            (base,) = self.published.terms(chunk)
            scales = np.ones(blocks_of(self.lengths[chunk]), np.float32)
            for codec in self._codecs(chunk):
                onto = None
                for _ in range(2):
                    terms = (base,) if onto is None else (base, onto)
                    own = codec.encode(terms, 0, scales)
                    onto = codec.decode(own, own, onto).correction

    def offer(self, chunk: int, seed: int) -> Encoded:
        """The initiator's side of `chunk`, to be kept until the reply comes.

        If it is not `finite` it may not travel.
        """
        attempt, chunk = divmod(chunk, len(self.lengths))
        codec, steps = self._codecs(chunk)[attempt], _NO_SCALES
        scales = self.published.scales[chunk]
        if isinstance(codec, Lattice) and scales.known:
            steps = scales.steps(codec.bits, self._magnitudes[chunk])
        elif isinstance(codec, Lattice):
            codec = self._exact
        return self._encode(chunk, codec, seed, steps)

    def again(self, chunk: int, accepted: Bools) -> int | None:
        """The number under which the initiator sends a chunk once more, if it has to.

        So it does at once where the partner is so far that too few blocks could be read: average
        the others alone, and a rank that falls behind is a patchwork of old and new weights.

        Args:
          accepted: bool [blocks], as the responder told it, so that both decide alike.
        """
        attempt, place = divmod(chunk, len(self.lengths))
        last = attempt + 1 == len(self._codecs(place))
        return None if last or not too_many(accepted) else chunk + len(self.lengths)

    def readable(self, chunk: int, encoded: Encoded) -> bool:
        """Whether what a partner sent has the form of this chunk in its codec."""
        attempt, place = divmod(chunk, len(self.lengths))
        if attempt >= len(self._codecs(place)) or encoded.length != self.lengths[place]:
            return False
        codec = self._codec_of(place, encoded)
        return codec is not None and codec.fits(encoded)

    def show(self, chunk: int) -> Encoded:
        """A chunk of the own model exactly, for one that adopts it."""
        return self._exact.encode(self.published.terms(chunk), 0, _NO_SCALES)

    def read(self, chunk: int, shown: Encoded) -> Floats | None:
        """What a partner has shown, float32 [length]; None if it is damaged, or not finite."""
        length = self.lengths[chunk]
        if shown.length != length or not self._exact.fits(shown):
            return None
        zeros = self._exact.encode((tf.zeros([length]),), 0, _NO_SCALES)
        decoded = self._exact.decode(zeros, shown)
        model = 2 * np.asarray(decoded.correction).reshape(-1)[:length]
        return model if decoded.accepted.all() and np.isfinite(model).all() else None

    def answer(self, chunk: int, offer: Encoded) -> tuple[Encoded, Bools] | Reason:
        """The responder's side of `chunk` and the blocks that it has averaged, or why not."""
        attempt, chunk = divmod(chunk, len(self.lengths))
        if attempt >= len(self._codecs(chunk)) or offer.length != self.lengths[chunk]:
            return Reason.OTHER_MODEL
        codec = self._codec_of(chunk, offer)
        if codec is None or not codec.fits(offer, question=self.one_sided):
            return Reason.OTHER_CODEC
        own = self._encode(chunk, codec, offer.seed, offer.scales)
        if not own.finite:
            return Reason.NOT_FINITE
        if self.one_sided:
            return own, own.usable
        return own, self._average(chunk, codec, own, offer)

    def conclude(
        self,
        chunk: int,
        own: Encoded,
        reply: Encoded,
        accepted: Bools,
        *,
        strict: bool,
        stays: bool = False,
    ) -> Bools | None:
        """Apply the initiator's correction; returns the blocks that were averaged.

        None, with `strict`, if the reply is damaged: the partner averaged blocks that cannot be
        read here, so it must be asked for once more.

        Args:
          stays: the initiator does not change; only its partner has.
        """
        chunk %= len(self.lengths)
        codec = self._codec_of(chunk, own)
        assert codec is not None
        # One-sided, the responder can't know what is readable here: a block that is too far would
        # be asked for again and again.
        if strict and not self.one_sided:
            readable = codec.decode(own, reply).accepted
            if (accepted & own.usable & ~readable).any():
                return None
        if stays:
            return self._read(codec, own, reply, accepted)
        return self._average(chunk, codec, own, reply, accepted)

    def _encode(self, chunk: int, codec: Codec, seed: int, steps: Floats) -> Encoded:
        own = codec.encode(self.published.terms(chunk), seed, steps)
        if own.finite:
            self._magnitudes[chunk] = own.magnitude
        return own

    def _codecs(self, chunk: int) -> list[Codec]:
        """How it travels, once its lattice is known: at first, and once more."""
        if chunk in self._exact_chunks:
            return [self._exact]
        return [self.codec, self._exact] if isinstance(self.codec, Lattice) else [self.codec]

    def _codec_of(self, chunk: int, encoded: Encoded) -> Codec | None:
        return {codec.wire_id: codec for codec in self._codecs(chunk)}.get(encoded.wire_id)

    def _average(
        self, chunk: int, codec: Codec, own: Encoded, other: Encoded, allowed: Bools | None = None
    ) -> Bools:
        """Correct the published chunk and learn from it; returns the blocks averaged."""
        decoded = self.published.correct(
            chunk, lambda onto: codec.decode(own, other, onto, allowed)
        )
        if self.keeps_last:
            self._read(codec, own, other, allowed)
        scales = self.published.scales[chunk]
        if not isinstance(codec, Lattice):
            scales.exact(decoded.spread)
        else:
            scales.update(codec.bits, own.scales, decoded.accepted, decoded.spread)
        return decoded.accepted

    def _read(self, codec: Codec, own: Encoded, other: Encoded, allowed: Bools | None) -> Bools:
        """What averaging would do to the chunk as it was offered; nothing is changed."""
        decoded = codec.decode(own, other, None, allowed)
        self.last = decoded.accepted, decoded.correction
        return decoded.accepted
