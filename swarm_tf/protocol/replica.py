"""The replica of a node: the copy of its model that others average with while it trains on.

The copy y of one chunk is the sum of up to three terms:

    base       the model as published at the last boundary; never written to
    applying   corrections that the training thread is adding to the model right now, in blocks
    pending    corrections that came after those, in blocks

All three are immutable tensors that are swapped as a whole, so nobody ever sees a half-applied
model and no exchange is lost while the training thread takes the corrections.

Of n chunks, number n + k in a message is chunk k once more, as float32, since it was out of range:
see `Channel.needs_exact_retry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from swarm_tf.codec import NO_SCALES, Bools, Channel, Decoded, Encoded, Floats, float32
from swarm_tf.protocol.messages import Reason

UNGUARDED: AbstractContextManager[object] = nullcontext()
"""The guard of a replica that only one thread uses."""


@dataclass(frozen=True)
class Averaged:
    """One side of one chunk after an exchange.

    Attributes:
      accepted: bool [blocks], those that were averaged.
      correction: float32 [blocks, BLOCK], what it adds to this side; None unless it is noted.
    """

    accepted: Bools
    correction: tf.Tensor | None = None


class Replica:
    """All chunks of the model, each with its channel.

    One thread trains (`take`, `publish`, `replace`) and one communicates (all else).
    The initiator calls `offer`, sends that, and calls `conclude` with the reply; the responder
    calls `answer`. After both, their corrections are exact opposites.

    Args:
      channels: one a chunk.
      one_sided: only the initiator changes (mode "pull").
      notes_corrections: each `Averaged` has its correction, at the cost of a second decoding.
      guard: held whenever tensors are swapped; a lock where two threads use the replica.

    Attributes:
      finite: False once this node's weights were found to hold NaN or Inf.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        *,
        one_sided: bool = False,
        notes_corrections: bool = False,
        guard: AbstractContextManager[object] = UNGUARDED,
    ) -> None:
        self.channels, self.one_sided = list(channels), one_sided
        self.finite = True
        self._notes_corrections, self._guard = notes_corrections, guard
        self._base: list[tf.Tensor] = []
        self._applying: list[tf.Tensor | None] = [None] * len(channels)
        self._pending: list[tf.Tensor | None] = [None] * len(channels)

    # The thread that trains.

    def take(self) -> list[tf.Tensor | None]:
        """The corrections so far, for the training thread to add to the model, then `publish`."""
        with self._guard:
            self._applying, self._pending = self._pending, [None] * len(self._pending)
            return self._applying

    def publish(self, chunks: Sequence[tf.Tensor]) -> None:
        """Publish a new model, which contains what `take` returned: float32 [length] a chunk."""
        with self._guard:
            self._base = list(chunks)
            self._applying = [None] * len(self._applying)

    def replace(self, chunks: Sequence[tf.Tensor]) -> None:
        """Publish another model in place of one that was not finite; drop its corrections."""
        self.take()
        self.publish(chunks)
        self.finite = True

    # The thread that communicates.

    def terms(self, chunk: int) -> tuple[tf.Tensor, ...]:
        """The copy now: the base, and where there are any, the corrections."""
        with self._guard:
            base, *parts = self._base[chunk], self._applying[chunk], self._pending[chunk]
        corrections = [part for part in parts if part is not None]
        # At most two terms: each number of terms is compiled separately.
        return (base, tf.add_n(corrections)) if corrections else (base,)

    def warm_up(self) -> None:
        """Compile the kernels on the published model, once for each length of a chunk."""
        first = {channel.length: chunk for chunk, channel in reversed([*enumerate(self.channels)])}
        for chunk in first.values():
            (base,) = self.terms(chunk)
            self.channels[chunk].warm_up(base)

    def offer(self, number: int, seed: int) -> Encoded:
        """The initiator's side of chunk `number`. If it is not `finite` it must not be sent."""
        attempt, chunk = self._place(number)
        return self._checked(self.channels[chunk].offer(self.terms(chunk), seed, attempt))

    def answer(self, number: int, offer: Encoded) -> tuple[Encoded, Averaged] | Reason:
        """The responder's side of chunk `number`, averaged; or why not."""
        attempt, chunk = self._place(number)
        channel = self.channels[chunk]
        if not channel.is_of_this_chunk(offer, attempt):
            return Reason.OTHER_MODEL
        if not channel.readable(offer, without_payload=self.one_sided):
            return Reason.OTHER_CODEC
        own = self._checked(channel.answer(self.terms(chunk), offer))
        if not own.finite:
            return Reason.NOT_FINITE
        if self.one_sided:
            return own, Averaged(own.usable)
        return own, self._average(chunk, own, offer)

    def readable(self, number: int, reply: Encoded) -> bool:
        """Whether what a partner sent has the form of this chunk in its codec."""
        attempt, chunk = self._place(number)
        channel = self.channels[chunk]
        return channel.is_of_this_chunk(reply, attempt) and channel.readable(reply)

    def conclude(
        self,
        number: int,
        own: Encoded,
        reply: Encoded,
        accepted: Bools,
        *,
        strict: bool,
        withhold: bool = False,
    ) -> Averaged | None:
        """Correct the initiator's side of chunk `number`.

        With `strict`, None if the reply is damaged: the partner averaged blocks that cannot be read
        here, so the reply must come again.

        Args:
          accepted: bool [blocks], those that the partner has averaged.
          withhold: the initiator does not change; only its partner has.
        """
        _, chunk = self._place(number)
        channel = self.channels[chunk]
        # In mode "pull" the responder can't know what is readable here: a block out of range would
        # be requested for ever.
        if strict and not self.one_sided:
            readable = channel.decode(own, reply).accepted
            if (accepted & own.usable & ~readable).any():
                return None
        if withhold:
            decoded = channel.decode(own, reply, None, accepted)
            noted = decoded.correction if self._notes_corrections else None
            return Averaged(decoded.accepted, noted)
        return self._average(chunk, own, reply, accepted)

    def exact_retry_of(self, number: int, accepted: Bools) -> int | None:
        """The number under which this chunk is sent once more at once; None if it is not."""
        attempt, chunk = self._place(number)
        needed = self.channels[chunk].needs_exact_retry(attempt, accepted)
        return number + len(self.channels) if needed else None

    def encode_exact(self, chunk: int) -> Encoded:
        """A chunk, exactly, for a node that adopts the model."""
        return self._checked(float32().encode(self.terms(chunk), 0, NO_SCALES))

    def decode_exact(self, chunk: int, sent: Encoded) -> Floats | None:
        """A partner's chunk, float32 [length]; None if it is damaged, or not finite."""
        length, exact = self.channels[chunk].length, float32()
        if sent.length != length or not exact.fits(sent):
            return None
        zeros = exact.encode((tf.zeros([length]),), 0, NO_SCALES)
        decoded = exact.decode(zeros, sent)
        model = 2 * np.asarray(decoded.correction).reshape(-1)[:length]
        return model if decoded.accepted.all() and np.isfinite(model).all() else None

    def _place(self, number: int) -> tuple[int, int]:
        """The attempt and the chunk that a number stands for."""
        return divmod(number, len(self.channels))

    def _checked(self, own: Encoded) -> Encoded:
        if not own.finite:  # written to only then: the training thread sets it too
            self.finite = False
        return own

    def _average(
        self, chunk: int, own: Encoded, other: Encoded, allowed: Bools | None = None
    ) -> Averaged:
        channel = self.channels[chunk]
        decoded = self._correct(chunk, own, other, allowed)
        noted = None
        if self._notes_corrections:
            noted = channel.decode(own, other, None, allowed).correction
        channel.learn(own, decoded)
        return Averaged(decoded.accepted, noted)

    def _correct(self, chunk: int, own: Encoded, other: Encoded, allowed: Bools | None) -> Decoded:
        """Add the correction to the pending ones.

        It is computed outside the guard, so that the training thread never waits for a kernel,
        and once more if that thread took the pending ones in the meantime.
        """
        while True:
            with self._guard:
                onto = self._pending[chunk]
            decoded = self.channels[chunk].decode(own, other, onto, allowed)
            with self._guard:
                if self._pending[chunk] is onto:
                    if decoded.accepted.any():
                        self._pending[chunk] = decoded.correction
                    return decoded
