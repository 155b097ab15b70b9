"""One node of the swarm: the protocol of SwarmSGD's pairwise averaging, without any I/O.

SwarmSGD: Nadiradze, Sabour, Davies, Li, Alistarh, NeurIPS 2021, arXiv 1910.12308.

    initiator i                                              responder j, at any time
    REQUEST id, chunk, seed, scales, checksums, q_i    ->    read q_i against y_j, verify;
                                                             correction_j = s (q_i - q_j)/2
    read q_j, verify; correction_i is the opposite     <-    REPLY q_j, checksums, blocks accepted

A `Node` turns messages into messages: `handle` and `poll` return what to send. The thread that
moves them (`transport.dispatcher`) may belong to any transport, and a test may deliver them in any
order. Whatever the order, the corrections of an exchange are exact opposites and each is applied
once, so the mean of all models does not move.

A node that has ended its own steps serves until all have. To those who have taken more steps than
it, its old model has no weight: it takes its half of an exchange, and they leave theirs.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from swarm_tf.codec import SEEDS, Codec
from swarm_tf.codec.base import Encoded, Floats
from swarm_tf.events import Counters
from swarm_tf.history.record import Record
from swarm_tf.protocol.averaging import Averaging
from swarm_tf.protocol.gate import Admission, State
from swarm_tf.protocol.messages import Exchange, Kind, Message, Reason, Served

Outbox = list[tuple[int, Message]]
"""(destination rank, message) pairs."""

_WINDOW = 3  # chunks of one exchange under way: one is encoded, one travels, one is decoded
_PING_SECONDS = 1.0
_log = logging.getLogger("swarm_tf")


class Node:
    """The exchange state of one rank.

    Args:
      rank, size: of this node, and of the swarm.
      lengths: weights in each chunk of the model.
      codec: how chunks travel; the first exchange of a fresh lattice is exact.
      exact: chunks that always travel as float32.
      mode: one of `config.MODES`.
      seed: of the dither.
      timeout_seconds: after this time without an answer an exchange counts as failed and the
        node may start another. A late answer is still applied: the partner applied its half.
      retry_seconds: repeat unanswered requests; None on a transport that loses nothing.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        lengths: Sequence[int],
        codec: Codec,
        mode: str = "nonblocking",
        *,
        exact: Collection[int] = (),
        seed: int = 0,
        timeout_seconds: float = 60.0,
        retry_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rank, self.size, self.mode = rank, size, mode
        self.averaging = Averaging(lengths, codec, exact, one_sided=mode == "pull")
        self.published = self.averaging.published
        self.counters = Counters()
        self.step = 0
        self.done: set[int] = set()  # with their own steps, or altogether:
        self.failed: set[int] = set()  # by an exception in their training
        self.left: set[int] = set()  # by the end of their program
        self.asked = False  # by a signal, here or elsewhere, to end
        self.ill = False  # the own model is not finite
        self.record: Record | None = None
        now = clock()
        self.heard = {other: (now, 0) for other in range(size) if other != rank}
        self._chunks = len(lengths)
        self._timeout, self._retry = timeout_seconds, retry_seconds
        self._clock = clock
        self._seeds = np.random.default_rng([seed, rank])
        # Shared with the training thread, under `_changed`.
        self._changed = threading.Condition()
        self._admission = Admission(rank, mode == "blocking")
        self._wanted: tuple[int, int] | None = None
        self._adopts = False  # what is wanted is the partner's model, not the mean
        self._adopted: list[Floats] | None = None
        self._current: Exchange | None = None
        self._finished: list[Exchange] = []
        self._closed = self._interrupted = False
        # The communication thread's own.
        self._count = 0
        self._exchanges: dict[int, Exchange] = {}
        self._waiting: list[Message] = []
        self._served: dict[int, Served] = {}  # the last exchange of each partner
        self._paired_since = 0.0
        self._told: float | None = None
        self._parting = Reason.NONE

    # What the training thread calls.

    def ask(self, partner: int, step: int, *, adopt: bool = False) -> None:
        """Start an exchange with `partner`; in blocking mode this node stands at its boundary.

        Args:
          adopt: take the partner's model as it is, since the own one is not finite.
        """
        with self._changed:
            self.step = step
            self._wanted, self._adopts = (partner, step), adopt

    def take_adopted(self) -> list[Floats] | None:
        """The model of a partner in chunks, if one has come since the last call."""
        with self._changed:
            adopted, self._adopted = self._adopted, None
            return adopted

    @property
    def asked_at(self) -> int | None:
        """The local step whose exchange is not over yet; None when a new one may start."""
        with self._changed:
            if self._wanted:
                return self._wanted[1]
            return self._current.step if self._current else None

    def wait(self, timeout: float) -> bool:
        """Wait until the exchange asked for is over; False if it is not after `timeout` seconds.

        In blocking mode it is over when this node has averaged with some node and nobody waits
        for it, or when the partner was busy (then `averaged` is False: ask another one).
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._interrupted or self._is_over(), timeout)

    def interrupt(self) -> None:
        """Nothing will come any more: end the waiting."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def _is_over(self) -> bool:
        if self._wanted or self._current:
            return False
        admission = self._admission
        owed = any(admission.promised(w.sender, w.exchange) for w in list(self._waiting))
        return admission.state is not State.PAIRED and not owed

    @property
    def averaged(self) -> bool:
        """(blocking) Whether this node's averaging at this boundary is settled."""
        with self._changed:
            return self._admission.averaged

    def leave(self) -> None:
        """(blocking) Leave the boundary: the model changes now, requests wait for the next one."""
        with self._changed:
            self._wanted = None
            self._admission.leave()

    def finish(self, step: int, asked: bool = False) -> None:
        """This node's own steps are over; it tells all others, and serves until `close`.

        Args:
          asked: by a signal, so the others' steps should be over too.
        """
        with self._changed:
            self.step, self.asked = step, asked or self.asked
            self._admission.finish()
            now = self._clock()
            self.heard = {other: (now, at) for other, (_, at) in self.heard.items()}
            self.done.add(self.rank)
            self._told = -math.inf

    def end_by_signal(self) -> None:
        """A signal has come while this node waited for others: tell them to end too."""
        with self._changed:
            if not self.asked:
                self.asked, self._told = True, -math.inf

    def part(self, reason: Reason) -> None:
        """Take no part any more, because of `reason`; it tells all others at the next `poll`."""
        with self._changed:
            self._closed, self._parting = True, reason
            self.done.add(self.rank)
            self._told = -math.inf

    @property
    def has_told(self) -> bool:
        """Whether `poll` has told the others what was last to be told."""
        return self._told != -math.inf

    def close(self) -> None:
        """Refuse everything from now on."""
        with self._changed:
            self._closed = True

    def owed(self) -> list[int]:
        """Partners that have not answered yet, late ones included."""
        with self._changed:
            asked = [self._wanted[0]] if self._wanted else []
        return asked + [e.partner for e in list(self._exchanges.values())]

    def count(self, **changes: float) -> None:
        """Add to the counters, from either thread."""
        with self._changed:
            self.counters += Counters(**changes)  # type: ignore[arg-type]

    def take_finished(self) -> list[Exchange]:
        """Own exchanges that ended since the last call."""
        with self._changed:
            finished, self._finished = self._finished, []
            return finished

    # What the communication thread calls.

    def poll(self) -> Outbox:
        """What is due without a message: exchanges asked for, waiting requests, deadlines."""
        out: Outbox = []
        with self._changed:
            wanted = self._wanted
            if wanted:
                self._admission.reach()
        for message in [*self._waiting]:
            if self._closed or self._admission.welcomes(message.sender, message.exchange):
                self._waiting.remove(message)
                out += self._on_request(message)
        if wanted and self._admission.state is State.FREE:
            out += self._start(*wanted)
        if self._waiting or wanted:
            with self._changed:
                self._changed.notify_all()
        return out + self._deadlines() + self._tell()

    def handle(self, message: Message) -> Outbox:
        """React to one message."""
        if message.sender not in self.heard:  # from nowhere, or from here
            self.count(messages_dropped=1)
            return []
        self.heard[message.sender] = (self._clock(), message.step)
        if message.kind is Kind.REQUEST:
            return self._on_request(message)
        if message.kind is Kind.REPLY:
            return self._on_reply(message)
        if message.kind is Kind.REFUSE:
            return self._on_refusal(message)
        if message.kind is Kind.CANCEL:
            return self._on_cancel(message)
        if message.kind is Kind.ADOPT:
            return self._on_adopt(message)
        if message.kind is Kind.PING:
            finished = self.rank in self.done
            return [(message.sender, self._done() if finished else self._message(Kind.PONG))]
        if message.kind is Kind.DONE:
            self._on_done(message)
        return []

    def _on_done(self, message: Message) -> None:
        sender, reason = message.sender, message.reason
        self.done.add(sender)
        self.asked |= reason is Reason.SIGNAL
        if reason not in (Reason.FAILED, Reason.LEFT) or sender in self.failed | self.left:
            return
        (self.left if reason is Reason.LEFT else self.failed).add(sender)
        _log.warning("rank %d: %s", self.rank, reason.sentence(sender))
        for exchange in [e for e in self._exchanges.values() if e.partner == sender]:
            exchange.failure = exchange.failure or reason.sentence(sender)
            self._end(exchange)
        with self._changed:
            self._waiting = [w for w in self._waiting if w.sender != sender]
            if self._admission.partner == sender and self._admission.state is State.PAIRED:
                self._part()

    def _tell(self) -> Outbox:
        """Having finished: tell everybody once, then ask those who have not whether they live."""
        now = self._clock()
        if self._told is None or now - self._told < _PING_SECONDS:
            return []
        first, self._told = self._told == -math.inf, now
        message = self._done() if first else self._message(Kind.PING)
        missing = (r for r in range(self.size) if first or r not in self.done)
        return [(r, message) for r in missing if r != self.rank]

    def _done(self) -> Message:
        reason = Reason.SIGNAL if self.asked else Reason.NONE
        return self._message(Kind.DONE, reason=self._parting or reason)

    def _message(self, kind: Kind, exchange: int = 0, chunk: int = 0, **fields: object) -> Message:
        return Message(kind, self.rank, exchange, chunk, step=self.step, **fields)  # type: ignore[arg-type]

    # As initiator.

    def _start(self, partner: int, step: int) -> Outbox:
        now = self._clock()
        self._count += 1
        seed = int(self._seeds.integers(SEEDS))
        exchange = Exchange(self._count, partner, step, seed, now, heard=now, asked=now)
        exchange.to_send.extend(range(self._chunks))
        with self._changed:
            self._wanted, exchange.adopts = None, self._adopts
            if self._admission.averaged and self.mode == "blocking":
                return []  # somebody came meanwhile: this boundary is settled
            self._current = exchange
            self._admission.ask()
            owes = any(e.partner == partner for e in self._exchanges.values())
            self._exchanges[exchange.id] = exchange
        gone = Reason.LEFT if partner in self.left else Reason.FAILED
        if partner in self.failed | self.left:
            exchange.failure = gone.sentence(partner)
        elif owes:
            exchange.failure = f"rank {partner} has not answered an earlier exchange yet"
        if exchange.failure:
            self._end(exchange)
            return []
        return self._advance(exchange)

    def _advance(self, exchange: Exchange) -> Outbox:
        """Send the next chunks, as far as the window allows."""
        out: Outbox = []
        # A node that waits itself may refuse: until it has answered, one chunk is enough.
        window = 1 if self.mode == "blocking" and not exchange.answered else _WINDOW
        while exchange.to_send and len(exchange.under_way) < window:
            chunk = exchange.to_send.popleft()
            own = None
            if not exchange.adopts:
                own = self.averaging.offer(chunk, (exchange.seed + chunk) % SEEDS)
                if not own.finite:  # NaN does not travel; chunks before it may have been averaged
                    self.ill = True
                    exchange.failure = Reason.NOT_FINITE.sentence(self.rank)
                    if not chunk:
                        self._end(exchange)
                        return []
                    exchange.cancelled = chunk
                    exchange.to_send.clear()
                exchange.payload_bytes += 0 if self.mode == "pull" else own.payload_bytes
            exchange.under_way[chunk] = own
            out.append(self._request(exchange, chunk))
        return out

    def _request(self, exchange: Exchange, chunk: int) -> tuple[int, Message]:
        own, reason, encoded = exchange.under_way[chunk], Reason.NONE, None
        if exchange.adopts:
            kind = Kind.ADOPT
        elif chunk == exchange.cancelled:
            kind, reason = Kind.CANCEL, Reason.NOT_FINITE
        else:
            assert own is not None
            kind, encoded = Kind.REQUEST, own.question() if self.mode == "pull" else own
        message = self._message(kind, exchange.id, chunk, reason=reason, encoded=encoded)
        return exchange.partner, message

    def _on_reply(self, message: Message) -> Outbox:
        exchange = self._exchanges.get(message.exchange)
        other, chunk = message.encoded, message.chunk
        if exchange is None or other is None or message.accepted is None:
            return []
        if exchange.partner != message.sender or chunk not in exchange.under_way:
            return []  # a second copy
        if exchange.adopts:
            return self._on_shown(exchange, chunk, other)
        own = exchange.under_way[chunk]
        if own is None or own.wire_id != other.wire_id or not self.averaging.readable(chunk, other):
            self.count(messages_dropped=1)
            return []
        exchange.heard = self._clock()
        # One that has ended earlier follows those who train on, and does not hold them back.
        stays = message.sender in self.done and message.step < exchange.step
        accepted = self.averaging.conclude(
            chunk, own, other, message.accepted, strict=self._retry is not None, stays=stays
        )
        if accepted is None:
            return []
        self._recorded(self.rank, exchange.id, chunk, stays=stays)
        if self.mode == "pull":  # the question has no payload, the answer has
            exchange.payload_bytes += other.payload_bytes
        told = accepted if self.mode == "pull" else message.accepted
        again = self.averaging.again(chunk, told)
        if again is None:
            exchange.blocks += len(accepted)
            exchange.blocks_skipped += int((~accepted).sum())
        elif not exchange.failure:
            exchange.to_send.append(again)
        exchange.answered += 1
        self._settle(exchange, chunk)
        with self._changed:
            if self._current is exchange:
                self._admission.pair(exchange.partner)
        return [] if exchange.failure else self._advance(exchange)

    def _on_shown(self, exchange: Exchange, chunk: int, shown: Encoded) -> Outbox:
        """One chunk of the model that this node adopts."""
        model = self.averaging.read(chunk, shown)
        if model is None:
            self.count(messages_dropped=1)
            return []
        exchange.heard = self._clock()
        exchange.model[chunk] = model
        exchange.answered += 1
        self._settle(exchange, chunk)
        return [] if exchange.failure else self._advance(exchange)

    def _on_refusal(self, message: Message) -> Outbox:
        exchange = self._exchanges.get(message.exchange)
        if exchange is None or exchange.partner != message.sender:
            return []
        if message.chunk in exchange.under_way:
            exchange.heard = self._clock()
            if not exchange.failure:
                exchange.failure = message.reason.sentence(message.sender)
                exchange.harmless = not message.reason.is_failure
            # Other chunks may have been averaged: the exchange ends when each is answered.
            self._settle(exchange, message.chunk)
        return []

    def _settle(self, exchange: Exchange, chunk: int) -> None:
        """One chunk is answered; maybe it was the last."""
        del exchange.under_way[chunk]
        all_sent = exchange.failure or not exchange.to_send
        if all_sent and not exchange.under_way:
            self._end(exchange)

    def _end(self, exchange: Exchange) -> None:
        exchange.seconds = self._clock() - exchange.started
        del self._exchanges[exchange.id]
        failed = bool(exchange.failure) and not exchange.harmless
        with self._changed:
            if exchange.adopts and not exchange.failure:
                self._adopted = [exchange.model[chunk] for chunk in range(self._chunks)]
            self.count(
                exchanges=not exchange.failure and not exchange.adopts,
                adoptions=not exchange.failure and exchange.adopts,
                exchanges_failed=failed - exchange.overdue,  # counted when it was overdue
                payload_bytes=0 if exchange.failure else exchange.payload_bytes,
                blocks_total=exchange.blocks,
                blocks_skipped=exchange.blocks_skipped,
            )
            if not exchange.harmless:
                self._finished.append(exchange)
            self._release(exchange)
        if failed and exchange.partner not in self.failed | self.left and not self.ill:
            _log.warning("rank %d: no exchange: %s", self.rank, exchange.failure)

    def _release(self, exchange: Exchange) -> None:
        """The training thread need not wait for this exchange any more."""
        if self._current is exchange:
            self._current = None
            # After a failure, too, this boundary is settled; only a busy partner is replaced.
            self._admission.part(not exchange.harmless, self._waiting_ids())
        self._changed.notify_all()

    def _deadlines(self) -> Outbox:
        out: Outbox = []
        now = self._clock()
        for exchange in self._exchanges.values():
            if self._retry is not None and now - exchange.asked > self._retry:
                exchange.asked = now
                out += [self._request(exchange, chunk) for chunk in exchange.under_way]
            if not exchange.overdue and now - exchange.heard > self._timeout:
                exchange.overdue = True
                waited = f"waited {self._timeout:g} s for rank {exchange.partner}"
                _log.warning("rank %d %s; training goes on", self.rank, waited)
                with self._changed:
                    self.count(exchanges_failed=1)
                    self._release(exchange)
        served = self._admission.state is State.PAIRED and self._current is None
        if served and now - self._paired_since > self._timeout:
            _log.warning("rank %d: rank %s fell silent", self.rank, self._admission.partner)
            self._part()
        return out

    # As responder.

    def _on_request(self, message: Message) -> Outbox:
        sender, chunk = message.sender, message.chunk
        served = self._serving(message)
        if message.exchange < served.id:
            return []  # a late copy of an exchange that is over
        if chunk >= 2 * self._chunks:
            other = Reason.OTHER_MODEL
            return [(sender, self._message(Kind.REFUSE, message.exchange, chunk, reason=other))]
        if chunk in served.answers:
            return [(sender, served.answers[chunk])] if self._retry is not None else []
        refused = [a.reason for a in served.answers.values() if a.kind is Kind.REFUSE]
        with self._changed:
            mine = self._current
            # One exchange serves both, unless each only reads.
            crossed = (
                self.mode != "pull"
                and mine is not None
                and mine.partner == sender
                and mine.answered == 0
                and not served.answers
            )
            verdict = self._admission.admit(sender, crossed, message.exchange)
            if self._closed or refused:
                verdict = refused[0] if refused else Reason.CLOSED
            if verdict is True:  # from here on the training thread may not leave the boundary
                self._admission.pair(sender)
                self._paired_since = self._clock()
        if verdict is False:
            if not any(
                (w.sender, w.exchange, w.chunk) == (sender, message.exchange, chunk)
                for w in self._waiting
            ):
                self._waiting.append(message)
            return []
        answer = self._serve(message) if verdict is True else verdict
        if isinstance(answer, Reason):
            answer = self._message(Kind.REFUSE, message.exchange, chunk, reason=answer)
        # Without repeats the payload need not be kept.
        kept = answer if self._retry is not None else replace(answer, encoded=None)
        served.answers[chunk] = kept
        if answer.accepted is not None:
            served.chunks += self.averaging.again(chunk, answer.accepted) is not None
        self._served[sender] = served
        whole = answer.kind is Kind.REPLY and len(served.answers) == served.chunks
        if whole or (answer.kind is Kind.REFUSE and self._admission.partner == sender):
            with self._changed:
                self.count(exchanges_served=whole)
                self._part()
        return [(sender, answer)]

    def _serving(self, message: Message) -> Served:
        """The exchange of this message as far as it is answered, or a later one of its sender."""
        served = self._served.get(message.sender)
        if served is None or served.id < message.exchange:
            return Served(message.exchange, self._chunks)
        return served

    def _on_adopt(self, message: Message) -> Outbox:
        """Show a chunk to a node whose model is not finite; the own one stays as it is."""
        if message.chunk >= self._chunks:
            self.count(messages_dropped=1)
            return []
        shown = None if self._closed else self.averaging.show(message.chunk)
        if shown is None or not shown.finite:
            self.ill |= shown is not None
            kind, reason, shown = Kind.REFUSE, Reason.NOT_FINITE, None
            reason = Reason.CLOSED if self._closed else reason
        else:
            kind, reason = Kind.REPLY, Reason.NONE
        accepted = None if shown is None else np.ones(len(shown.checksums[0]), np.bool_)
        answer = self._message(
            kind, message.exchange, message.chunk, reason=reason, encoded=shown, accepted=accepted
        )
        return [(message.sender, answer)]

    def _on_cancel(self, message: Message) -> Outbox:
        """The initiator goes no further; requests of this exchange that come late are refused."""
        sender, same = message.sender, (message.sender, message.exchange)
        served = self._serving(message)
        if message.exchange < served.id or message.chunk >= 2 * self._chunks:
            return []
        refusal = self._message(Kind.REFUSE, message.exchange, message.chunk, reason=message.reason)
        served.answers[message.chunk] = refusal
        self._served[sender] = served
        with self._changed:
            self._waiting = [w for w in self._waiting if (w.sender, w.exchange) != same]
            if self._admission.partner == sender:
                self._part()
        return [(sender, refusal)]

    def _serve(self, message: Message) -> Message | Reason:
        if message.encoded is None:
            return Reason.OTHER_MODEL
        answer = self.averaging.answer(message.chunk, message.encoded)
        if isinstance(answer, Reason):
            self.ill |= answer is Reason.NOT_FINITE
            return answer
        own, accepted = answer
        if self.mode != "pull":
            self._recorded(message.sender, message.exchange, message.chunk)
        return self._message(
            Kind.REPLY, message.exchange, message.chunk, encoded=own, accepted=accepted
        )

    def _recorded(self, initiator: int, exchange: int, chunk: int, *, stays: bool = False) -> None:
        if self.record is not None and self.averaging.last is not None:
            self.record.averaged(initiator, exchange, chunk, *self.averaging.last, stays=stays)

    def _waiting_ids(self) -> set[tuple[int, int]]:
        return {(w.sender, w.exchange) for w in self._waiting}

    def _part(self) -> None:
        """(blocking) The exchange that this node served is over."""
        with self._changed:
            self._admission.part(True, self._waiting_ids())
            self._changed.notify_all()
