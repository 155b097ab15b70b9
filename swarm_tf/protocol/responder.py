"""The responder's side: requests of other nodes, answered at any moment that the gate allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from swarm_tf.events import ChunkAveraged, Event, ExchangeServed, MessageDropped, PartnerSilent
from swarm_tf.protocol.gate import Gate, State
from swarm_tf.protocol.messages import Kind, Message, Outbox, Reason
from swarm_tf.protocol.replica import Averaged, Replica


@dataclass
class _Served:
    """The latest exchange of one initiator, as far as it is answered.

    Attributes:
      id: counted by the initiator.
      chunks: how many requests it has; one more for each chunk that must be sent again exactly.
      answers: to each of them, by its number.
    """

    id: int
    chunks: int
    answers: dict[int, Message] = field(default_factory=dict)

    @property
    def refusal(self) -> Reason | None:
        """Why a chunk was refused; those that follow are refused for the same reason."""
        refused = (a.reason for a in self.answers.values() if a.kind is Kind.REFUSE)
        return next(refused, None)


class Responder:
    """Answers requests: averages this node's side and sends it, or refuses with the reason.

    Args:
      crosses: whether a request of this node to that rank is on its way; see `Initiator.crosses`.
      keeps_answers: whether messages may be lost, so that a copy of a request must be answered.
      timeout_seconds: after which a partner that sends no more is given up.
      note: is called with each event.
    """

    def __init__(
        self,
        rank: int,
        replica: Replica,
        gate: Gate,
        *,
        crosses: Callable[[int], bool],
        keeps_answers: bool,
        timeout_seconds: float,
        note: Callable[[Event], None],
    ) -> None:
        self.rank = rank
        self.closed = False
        self._replica, self._gate, self._crosses, self._note = replica, gate, crosses, note
        self._keeps_answers, self._timeout = keeps_answers, timeout_seconds
        self._served: dict[int, _Served] = {}  # by initiator
        self._paired_since = 0.0

    def on_request(self, message: Message, now: float) -> Outbox:
        """Answer one chunk, now or when the gate opens."""
        sender, number = message.sender, message.chunk
        served = self._exchange_of(message)
        if message.exchange < served.id:
            return []  # a copy: an initiator's earlier exchanges with this node are over
        if number >= 2 * len(self._replica.channels):
            return self._refuse(message, Reason.OTHER_MODEL)
        if number in served.answers:
            return self._answer_again(served, message)
        verdict = self._verdict(message, served)
        if verdict is False:
            self._gate.queue(message)
            return []
        if verdict is True:
            self._gate.pair(sender)
            self._paired_since = now
            answer = self._average(message)
        else:
            answer = self._refusal(message, verdict)
        self._keep(served, number, answer)
        self._served[sender] = served
        whole = answer.kind is Kind.REPLY and len(served.answers) == served.chunks
        if whole:
            self._note(ExchangeServed(sender))
        if whole or (answer.kind is Kind.REFUSE and self._gate.partner == sender):
            self._gate.end_exchange(settles=True)
        return [(sender, answer)]

    def _verdict(self, message: Message, served: _Served) -> Reason | bool:
        """What becomes of a request; see `Gate.admit`."""
        # Crossing requests need one exchange only, except in mode "pull".
        crossed = (
            not self._replica.one_sided and not served.answers and self._crosses(message.sender)
        )
        verdict = self._gate.admit(message, crossed)
        if served.refusal is not None:
            return served.refusal
        return Reason.CLOSED if self.closed else verdict

    def _average(self, message: Message) -> Message:
        if message.encoded is None:
            return self._refusal(message, Reason.OTHER_MODEL)
        answer = self._replica.answer(message.chunk, message.encoded)
        if isinstance(answer, Reason):
            return self._refusal(message, answer)
        own, averaged = answer
        self._note_averaged(message, averaged)
        return Message(
            Kind.REPLY,
            self.rank,
            message.exchange,
            message.chunk,
            reason=Reason.ENDED if self._gate.finished else Reason.NONE,
            encoded=own,
            accepted=averaged.accepted,
        )

    def _note_averaged(self, message: Message, averaged: Averaged) -> None:
        if averaged.correction is not None:
            blocks, correction = averaged.accepted, averaged.correction
            exchange, number = message.exchange, message.chunk
            self._note(ChunkAveraged(message.sender, exchange, number, blocks, correction))

    def _keep(self, served: _Served, number: int, answer: Message) -> None:
        kept = answer if self._keeps_answers else replace(answer, encoded=None)
        served.answers[number] = kept
        if answer.accepted is not None:
            served.chunks += self._replica.exact_retry_of(number, answer.accepted) is not None

    def _answer_again(self, served: _Served, message: Message) -> Outbox:
        """The stored answer to a copy of a message; none where the first one cannot be lost."""
        return [(message.sender, served.answers[message.chunk])] if self._keeps_answers else []

    def _exchange_of(self, message: Message) -> _Served:
        """This message's exchange so far; a later one if its sender has begun one."""
        served = self._served.get(message.sender)
        if served is None or served.id < message.exchange:
            return _Served(message.exchange, len(self._replica.channels))
        return served

    def on_adopt(self, message: Message) -> Outbox:
        """Send a chunk, exactly, to a node whose model is not finite; this one does not change."""
        if message.chunk >= len(self._replica.channels):
            self._note(MessageDropped("its chunk number is out of range"))
            return []
        if self.closed:
            return self._refuse(message, Reason.CLOSED)
        sent = self._replica.encode_exact(message.chunk)
        if not sent.finite:
            return self._refuse(message, Reason.NOT_FINITE)
        every = np.ones(len(sent.checksums[0]), np.bool_)
        exchange, chunk = message.exchange, message.chunk
        answer = Message(Kind.REPLY, self.rank, exchange, chunk, encoded=sent, accepted=every)
        return [(message.sender, answer)]

    def on_cancel(self, message: Message) -> Outbox:
        """The initiator ends this exchange; requests of it that come late are refused."""
        sender, served = message.sender, self._exchange_of(message)
        if message.exchange < served.id or message.chunk >= 2 * len(self._replica.channels):
            return []
        if message.chunk in served.answers:
            return self._answer_again(served, message)
        refusal = self._refusal(message, message.reason)
        served.answers[message.chunk] = refusal
        self._served[sender] = served
        self._gate.drop(sender, message.exchange)
        if self._gate.partner == sender:
            self._gate.end_exchange(settles=True)
        return [(sender, refusal)]

    def on_gone(self, rank: int) -> None:
        """A rank has failed or left: it waits for no answer any more."""
        self._gate.drop(rank)
        if self._gate.partner == rank and self._gate.state is State.PAIRED:
            self._gate.end_exchange(settles=True)

    def poll(self, now: float) -> Outbox:
        """Answer waiting requests that may be served now."""
        out: Outbox = []
        for request in [*self._gate.waiting]:
            if self.closed or self._gate.can_serve(request):
                self._gate.waiting.remove(request)
                out += self.on_request(request, now)
        return out

    def give_up_silent(self, now: float) -> None:
        """(blocking) End an exchange whose partner has stopped sending."""
        if self._gate.state is State.PAIRED and now - self._paired_since > self._timeout:
            assert self._gate.partner is not None
            self._note(PartnerSilent(self._gate.partner))
            self._gate.end_exchange(settles=True)

    def _refusal(self, message: Message, reason: Reason) -> Message:
        return Message(Kind.REFUSE, self.rank, message.exchange, message.chunk, reason=reason)

    def _refuse(self, message: Message, reason: Reason) -> Outbox:
        return [(message.sender, self._refusal(message, reason))]
