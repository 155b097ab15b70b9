"""The numbers of an exchange: what each side encodes, verifies, corrects and learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import tensorflow as tf

from swarm_tf.codec import Codec, Encoded, Lattice, build
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
        self.codec, self._float32 = codec, build("float32")
        self._exact_chunks = frozenset(exact)

    def warm_up(self) -> None:
        """Compile the kernels on the published model, so that no exchange waits for that."""
        logger = tf.get_logger()
        level = logger.level
        logger.setLevel("ERROR")  # several traces in a row are what is wanted here
        try:
            self._call_each_kernel()
        finally:
            logger.setLevel(level)

    def _call_each_kernel(self) -> None:
        first = {length: chunk for chunk, length in reversed(list(enumerate(self.lengths)))}
        for chunk in first.values():
            base, magnitude = self.published.terms(chunk)[0], self.published.magnitude(chunk)
            for codec in {self._float32, self._usual(chunk)}:
                for terms in ((base,), (base, base)):
                    own = codec.encode(terms, 0, np.maximum(magnitude, 1), magnitude)
                    other = dataclasses.replace(own, numbers=None)  # as if off the wire
                    accepted, _ = codec.verify(own, other)
                    codec.correct(own, other, accepted, None if len(terms) == 1 else base)

    def finite(self) -> bool:
        """False if the published model contains NaN or Inf."""
        return all(self.published.finite(chunk) for chunk in range(len(self.lengths)))

    def offer(self, chunk: int, seed: int) -> Encoded:
        """The initiator's side of `chunk`, to be kept until the reply comes."""
        terms, magnitude = self.published.read(chunk)
        codec, steps = self._usual(chunk), _NO_SCALES
        if isinstance(codec, Lattice):
            scales = self.published.scales[chunk]
            if scales.known:
                steps = scales.steps(codec.bits, magnitude)
            else:
                codec = self._float32
        return codec.encode(terms, seed, steps, magnitude)

    def answer(self, chunk: int, offer: Encoded) -> tuple[Encoded, Bools] | Reason:
        """The responder's side of `chunk` and the blocks that it has averaged, or why not."""
        if chunk >= len(self.lengths) or offer.length != self.lengths[chunk]:
            return Reason.OTHER_MODEL
        codec = self._codec_of(offer)
        if codec is None:
            return Reason.OTHER_CODEC
        if not self.finite():
            return Reason.NOT_FINITE
        terms, magnitude = self.published.read(chunk)
        own = codec.encode(terms, offer.seed, offer.scales, magnitude)
        if self.one_sided:
            return own, own.usable
        accepted, spread = codec.verify(own, offer)
        self._apply(chunk, codec, own, offer, accepted, spread)
        return own, accepted

    def conclude(
        self, chunk: int, own: Encoded, reply: Encoded, accepted: Bools, *, strict: bool
    ) -> Bools | None:
        """Apply the initiator's correction; returns the blocks that were averaged.

        None, with `strict`, if the reply is damaged: the partner averaged blocks that cannot be
        read here, so it must be asked for once more.
        """
        codec = self._codec_of(own)
        assert codec is not None
        readable, spread = codec.verify(own, reply)
        if strict and (accepted & own.usable & ~readable).any():
            return None
        both = readable & accepted
        self._apply(chunk, codec, own, reply, both, spread)
        return both

    def _usual(self, chunk: int) -> Codec:
        return self._float32 if chunk in self._exact_chunks else self.codec

    def _codec_of(self, encoded: Encoded) -> Codec | None:
        return {c.wire_id: c for c in (self._float32, self.codec)}.get(encoded.wire_id)

    def _apply(
        self,
        chunk: int,
        codec: Codec,
        own: Encoded,
        other: Encoded,
        accepted: Bools,
        spread: Floats,
    ) -> None:
        scales = self.published.scales[chunk]
        if isinstance(codec, Lattice):
            scales.update(codec.bits, own.scales, accepted, spread)
        else:
            scales.exact(spread)
        if accepted.any():
            self.published.correct(chunk, lambda onto: codec.correct(own, other, accepted, onto))
