"""The initiator's side: exchanges that this node requests, from the request to their end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swarm_tf.codec import SEEDS, Encoded, Floats
from swarm_tf.events import (
    ChunkAveraged,
    Event,
    ExchangeEnded,
    ExchangeLate,
    ExchangeOverdue,
    MessageDropped,
)
from swarm_tf.protocol.gate import Gate, State
from swarm_tf.protocol.membership import Membership
from swarm_tf.protocol.messages import Kind, Message, Outbox, Reason
from swarm_tf.protocol.replica import Replica

_WINDOW = 3  # chunks of one exchange in flight: one is encoded, one travels, one is decoded


@dataclass(frozen=True)
class _Wanted:
    """An exchange that the training thread wants, not started yet."""

    partner: int
    step: int
    adopt: bool


@dataclass
class _Exchange:
    """An exchange that is not over.

    Attributes:
      in_flight: the own side of chunks by number, to read the replies against and to send again;
        None in an adoption, which has no own side.
      to_send: numbers of the chunks that are not sent yet.
      answered: chunks answered so far.
      cancelled: the number at which the initiator stopped, since its model is not finite.
      model: chunks of the partner's model, in an adoption.
      failure: why it failed, in words; empty if it has not.
      harmless: not a failure to report: two requests crossed, or the partner was busy.
    """

    id: int
    partner: int
    step: int
    adopt: bool
    seed: int
    started: float
    last_reply_at: float
    repeated_at: float
    to_send: deque[int]
    in_flight: dict[int, Encoded | None] = field(default_factory=dict)
    answered: int = 0
    cancelled: int | None = None
    model: dict[int, Floats] = field(default_factory=dict)
    failure: str = ""
    harmless: bool = False
    overdue: bool = False
    payload_bytes: int = 0
    blocks: int = 0
    blocks_skipped: int = 0


class Initiator:
    """Starts the exchanges of a node, sends chunk after chunk, and reads the replies.

    Args:
      seed: of the dither.
      timeout_seconds: after this time without an answer an exchange counts as failed and the node
        may start another. A late answer still counts, since the partner has applied its half;
        unless the partner has failed or left.
      repeat_seconds: after which an unanswered request is sent again; None on a transport that
        loses nothing.
      note: is called with each event.
    """

    def __init__(
        self,
        rank: int,
        replica: Replica,
        gate: Gate,
        membership: Membership,
        *,
        seed: int,
        timeout_seconds: float,
        repeat_seconds: float | None,
        note: Callable[[Event], None],
    ) -> None:
        self.rank = rank
        self._replica, self._gate, self._membership, self._note = replica, gate, membership, note
        self._timeout, self._repeat = timeout_seconds, repeat_seconds
        self._seeds = np.random.default_rng([seed, rank])
        self._count = 0
        self._wanted: _Wanted | None = None
        self._current: _Exchange | None = None
        self._exchanges: dict[int, _Exchange] = {}
        self._adopted: list[Floats] | None = None

    # Calls of the node.

    def request(self, partner: int, step: int, *, adopt: bool = False) -> None:
        """Want an exchange; `start` begins it as soon as the gate is free.

        If the last one is not over, it is late: training does not wait for it any more, but its
        answer still counts.
        """
        if self._current is not None:
            self._note(ExchangeLate(self._current.partner))
            self._release(self._current)
        self._wanted = _Wanted(partner, step, adopt)

    def withdraw(self) -> None:
        """Want no exchange any more."""
        self._wanted = None

    @property
    def is_wanted(self) -> bool:
        """Whether an exchange waits to start."""
        return self._wanted is not None

    @property
    def is_under_way(self) -> bool:
        """Whether an exchange has started for which the training thread waits."""
        return self._current is not None

    @property
    def pending_step(self) -> int | None:
        """The local step whose exchange is not over yet; None when a new one may start."""
        pending = self._wanted or self._current
        return None if pending is None else pending.step

    @property
    def unanswered(self) -> tuple[int, ...]:
        """Partners that have not answered yet, late ones included."""
        wanted = () if self._wanted is None else (self._wanted.partner,)
        return (*wanted, *(exchange.partner for exchange in self._exchanges.values()))

    @property
    def outstanding(self) -> int:
        """Exchanges that are not over, without those that have waited for too long."""
        wanted = self._wanted is not None
        return wanted + sum(not exchange.overdue for exchange in self._exchanges.values())

    def crosses(self, partner: int) -> bool:
        """Whether a request of this node to `partner` is on its way, and unanswered."""
        current = self._current
        return current is not None and current.partner == partner and current.answered == 0

    def take_adopted(self) -> list[Floats] | None:
        """The model of a partner in chunks, if one has come since the last call."""
        adopted, self._adopted = self._adopted, None
        return adopted

    def state(self) -> dict[str, Any]:
        """The generator of seeds, for a checkpoint; exchanges that are not over are lost."""
        return {"seeds": self._seeds.bit_generator.state}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""
        self._seeds.bit_generator.state = saved["seeds"]

    # From the request to the end.

    def start(self, now: float) -> Outbox:
        """Begin the exchange that is wanted, if the gate is free."""
        wanted = self._wanted
        if wanted is None or self._gate.state is not State.FREE:
            return []
        self._wanted = None
        self._count += 1
        seed = int(self._seeds.integers(SEEDS))
        if self._gate.blocking and self._gate.settled:
            return []  # it has served another node meanwhile
        exchange = _Exchange(
            self._count,
            wanted.partner,
            wanted.step,
            wanted.adopt,
            seed,
            started=now,
            last_reply_at=now,
            repeated_at=now,
            to_send=deque(range(len(self._replica.channels))),
        )
        if wanted.partner in self._membership.left:
            exchange.failure = Reason.LEFT.sentence(wanted.partner)
        elif wanted.partner in self._membership.failed:
            exchange.failure = Reason.FAILED.sentence(wanted.partner)
        elif wanted.partner in self.unanswered:
            exchange.failure = f"rank {wanted.partner} has not answered an earlier exchange yet"
        self._current = self._exchanges[exchange.id] = exchange
        self._gate.start_request()
        if exchange.failure:
            self._end(exchange, now)
            return []
        return self._send_more(exchange, now)

    def _send_more(self, exchange: _Exchange, now: float) -> Outbox:
        """The next chunks, as far as the window allows."""
        out: Outbox = []
        # A blocking partner may refuse: until it has answered, one chunk is enough.
        window = 1 if self._gate.blocking and not exchange.answered else _WINDOW
        while exchange.to_send and len(exchange.in_flight) < window:
            number = exchange.to_send.popleft()
            own = (
                None
                if exchange.adopt
                else self._replica.offer(number, (exchange.seed + number) % SEEDS)
            )
            if own is not None and not own.finite:
                # NaN does not travel; but chunks before this one may have been averaged.
                exchange.failure = Reason.NOT_FINITE.sentence(self.rank)
                if number == 0:
                    self._end(exchange, now)
                    return []
                exchange.cancelled = number
                exchange.to_send.clear()
            if own is not None and not self._replica.one_sided:
                exchange.payload_bytes += own.payload_bytes
            exchange.in_flight[number] = own
            out.append((exchange.partner, self._message(exchange, number)))
        return out

    def _message(self, exchange: _Exchange, number: int) -> Message:
        own = exchange.in_flight[number]
        if own is None:
            return Message(Kind.ADOPT, self.rank, exchange.id, number)
        if number == exchange.cancelled:
            reason = Reason.NOT_FINITE
            return Message(Kind.CANCEL, self.rank, exchange.id, number, reason=reason)
        encoded = own.without_payload() if self._replica.one_sided else own
        return Message(Kind.REQUEST, self.rank, exchange.id, number, encoded=encoded)

    def on_reply(self, message: Message, now: float) -> Outbox:
        """The partner has averaged one chunk: average this side of it."""
        exchange = self._awaiting(message)
        reply, accepted, number = message.encoded, message.accepted, message.chunk
        if exchange is None or reply is None or accepted is None:
            return []  # a second copy, or an answer to no request
        own = exchange.in_flight[number]
        if own is None:
            return self._on_model_chunk(exchange, number, reply, now)
        if own.codec != reply.codec or not self._replica.readable(number, reply):
            self._note(MessageDropped("a reply of another form"))
            return []
        exchange.last_reply_at = now
        # A partner that ended earlier applies its half, but must not pull back one that trains on.
        withhold = message.reason is Reason.ENDED and message.step < exchange.step
        averaged = self._replica.conclude(
            number, own, reply, accepted, strict=self._repeat is not None, withhold=withhold
        )
        if averaged is None:
            return []
        if averaged.correction is not None:
            correction, blocks = averaged.correction, averaged.accepted
            self._note(ChunkAveraged(self.rank, exchange.id, number, blocks, correction, withhold))
        if self._replica.one_sided:  # the request has no payload, the reply has
            exchange.payload_bytes += reply.payload_bytes
            accepted = averaged.accepted  # the partner can't know
        exact_retry = self._replica.exact_retry_of(number, accepted)
        if exact_retry is None:
            exchange.blocks += len(averaged.accepted)
            exchange.blocks_skipped += int((~averaged.accepted).sum())
        elif not exchange.failure:
            exchange.to_send.append(exact_retry)
        exchange.answered += 1
        self._chunk_answered(exchange, number, now)
        if self._current is exchange:
            self._gate.pair(exchange.partner)
        return [] if exchange.failure else self._send_more(exchange, now)

    def _on_model_chunk(self, exchange: _Exchange, chunk: int, sent: Encoded, now: float) -> Outbox:
        """One chunk of the model that this node adopts."""
        model = self._replica.decode_exact(chunk, sent)
        if model is None:
            self._note(MessageDropped("a model that cannot be read"))
            return []
        exchange.last_reply_at = now
        exchange.model[chunk] = model
        exchange.answered += 1
        self._chunk_answered(exchange, chunk, now)
        return [] if exchange.failure else self._send_more(exchange, now)

    def on_refusal(self, message: Message, now: float) -> Outbox:
        """The partner does not average this chunk."""
        exchange = self._awaiting(message)
        if exchange is None:
            return []
        exchange.last_reply_at = now
        if not exchange.failure:
            exchange.failure = message.reason.sentence(message.sender)
            exchange.harmless = not message.reason.is_failure
        # Other chunks may have been averaged: the exchange ends when each is answered.
        self._chunk_answered(exchange, message.chunk, now)
        return []

    def on_gone(self, rank: int, reason: str, now: float) -> None:
        """A rank has failed or left: it answers nothing any more."""
        for exchange in [e for e in self._exchanges.values() if e.partner == rank]:
            exchange.failure = exchange.failure or reason
            self._end(exchange, now)

    def _awaiting(self, message: Message) -> _Exchange | None:
        """The exchange that waits for this answer."""
        exchange = self._exchanges.get(message.exchange)
        if exchange is None or exchange.partner != message.sender:
            return None
        return exchange if message.chunk in exchange.in_flight else None

    def _chunk_answered(self, exchange: _Exchange, number: int, now: float) -> None:
        """One chunk is answered; end the exchange if it was the last one."""
        del exchange.in_flight[number]
        all_sent = exchange.failure or not exchange.to_send
        if all_sent and not exchange.in_flight:
            self._end(exchange, now)

    def _end(self, exchange: _Exchange, now: float) -> None:
        del self._exchanges[exchange.id]
        if exchange.adopt and not exchange.failure:
            chunks = range(len(self._replica.channels))
            self._adopted = [exchange.model[chunk] for chunk in chunks]
        gone = self._membership.is_gone(exchange.partner)
        self._note(
            ExchangeEnded(
                exchange.id,
                exchange.partner,
                exchange.step,
                exchange.started,
                now - exchange.started,
                exchange.failure,
                exchange.payload_bytes,
                exchange.blocks,
                exchange.blocks_skipped,
                overdue=exchange.overdue,
                harmless=exchange.harmless,
                adopted=exchange.adopt,
                explained=gone or not self._replica.finite,
            )
        )
        self._release(exchange)

    def _release(self, exchange: _Exchange) -> None:
        """The training thread need not wait for this exchange any more."""
        if self._current is exchange:
            self._current = None
            # A failure settles this boundary too; only a busy partner is replaced by another one.
            self._gate.end_exchange(settles=not exchange.harmless)

    def poll(self, now: float) -> Outbox:
        """Repeat unanswered requests, and stop waiting for overdue answers."""
        out: Outbox = []
        for exchange in self._exchanges.values():
            if self._repeat is not None and now - exchange.repeated_at > self._repeat:
                exchange.repeated_at = now
                numbers = exchange.in_flight
                out += [(exchange.partner, self._message(exchange, n)) for n in numbers]
            if not exchange.overdue and now - exchange.last_reply_at > self._timeout:
                exchange.overdue = True
                self._note(ExchangeOverdue(exchange.partner, self._timeout))
                self._release(exchange)
        return out
