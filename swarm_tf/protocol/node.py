"""One node of the swarm: the protocol of SwarmSGD's pairwise averaging, without any I/O.

SwarmSGD: Nadiradze, Sabour, Davies, Li, Alistarh, NeurIPS 2021, arXiv 1910.12308.

    initiator i                                              responder j, at any time
    REQUEST id, chunk, seed, scales, checksums, q_i    ->    read q_i against y_j, verify;
                                                             correction_j = s (q_i - q_j)/2
    read q_j, verify; correction_i is the opposite     <-    REPLY q_j, checksums, blocks accepted

A `Node` turns messages into messages: `handle` and `poll` return what to send, and `take_events`
what has happened. It has no thread, lock or clock: `swarm_tf.driver` gives it those, and a test or
a simulation may deliver its messages in any order. Whatever the order, the corrections of an
exchange are exact opposites and each is applied once, so the mean of all models does not move.

A node that has taken its last step serves until all have. If its partner has taken more steps, only
this node applies its half of an exchange: its older model must not change the partner's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from swarm_tf.codec import Channel, Floats
from swarm_tf.events import Event, MessageDropped, RankGone
from swarm_tf.protocol.gate import Gate
from swarm_tf.protocol.initiator import Initiator
from swarm_tf.protocol.membership import Membership
from swarm_tf.protocol.messages import Kind, Message, Outbox, Reason
from swarm_tf.protocol.replica import UNGUARDED, Replica
from swarm_tf.protocol.responder import Responder

MODES = ("nonblocking", "blocking", "pull")


@dataclass(frozen=True)
class View:
    """What the training thread can see of its node; it is replaced as a whole.

    Attributes:
      pending_step: the local step whose exchange is not over yet; None when a new one may start.
      may_go_on: the training thread need not wait: neither for an exchange that this node
        requested, nor (blocking) for one that it must serve before it leaves its boundary.
      settled: (blocking) the node has averaged at this boundary. If not, and it `may_go_on`, the
        partner was busy: request from another one.
      unanswered: partners that have not answered yet, late ones included.
      outstanding: how many of them may still answer within the timeout.
      done, failed, left, stop_requested, has_announced: see `Membership`.
    """

    pending_step: int | None = None
    may_go_on: bool = True
    settled: bool = False
    unanswered: tuple[int, ...] = ()
    outstanding: int = 0
    done: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()
    left: frozenset[int] = frozenset()
    stop_requested: bool = False
    has_announced: bool = True


class Node:
    """The exchange state of one rank.

    Args:
      rank, size: of this node, and of the swarm.
      channels: how each chunk of the model travels.
      mode: "nonblocking", "blocking" or "pull".
      seed, timeout_seconds, repeat_seconds: see `Initiator`.
      notes_corrections, guard: see `Replica`.
      now: seconds of a monotonic clock, as whenever a method takes it.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        channels: Sequence[Channel],
        mode: str = "nonblocking",
        *,
        seed: int = 0,
        timeout_seconds: float = 60.0,
        repeat_seconds: float | None = None,
        notes_corrections: bool = False,
        guard: AbstractContextManager[object] = UNGUARDED,
        now: float = 0.0,
    ) -> None:
        self.rank, self.step = rank, 0
        self._events: list[Event] = []
        self.replica = Replica(
            channels,
            one_sided=mode == "pull",
            notes_corrections=notes_corrections,
            guard=guard,
        )
        self.gate = Gate(rank, mode == "blocking")
        self.membership = Membership(rank, size, now)
        self.initiator = Initiator(
            rank,
            self.replica,
            self.gate,
            self.membership,
            seed=seed,
            timeout_seconds=timeout_seconds,
            repeat_seconds=repeat_seconds,
            note=self._events.append,
        )
        self.responder = Responder(
            rank,
            self.replica,
            self.gate,
            crosses=self.initiator.crosses,
            keeps_answers=repeat_seconds is not None,
            timeout_seconds=timeout_seconds,
            note=self._events.append,
        )

    # Commands of the training thread.

    def request(self, partner: int, step: int, *, adopt: bool = False) -> None:
        """Start an exchange with `partner`; in blocking mode this node stands at its boundary.

        Args:
          step: local steps so far.
          adopt: copy the partner's model, since this node's own is not finite.
        """
        self.step = step
        self.initiator.request(partner, step, adopt=adopt)

    def leave_boundary(self) -> None:
        """(blocking) Leave the boundary: the model changes now, requests wait for the next one."""
        self.initiator.withdraw()
        self.gate.leave_boundary()

    def finish(self, step: int, now: float, *, stop: bool = False) -> None:
        """This node's own steps are over; it tells all others, and serves until `close`.

        Args:
          stop: a signal ended them, so the other nodes should finish too.
        """
        self.step = step
        if stop:
            self.membership.request_stop()
        self.gate.finish()
        self.membership.finish(now)

    def request_stop(self) -> None:
        """A signal has come while this node waited for others: tell them to end too."""
        self.membership.request_stop()

    def leave_swarm(self, reason: Reason) -> None:
        """Leave at once, because of `reason`; `poll` announces it to all others."""
        self.close()
        self.membership.leave_swarm(reason)

    def close(self) -> None:
        """Refuse all requests from now on."""
        self.responder.closed = True

    def state(self) -> dict[str, Any]:
        """What this node keeps from one exchange to the next, for a checkpoint."""
        channels = [channel.state() for channel in self.replica.channels]
        return {"initiator": self.initiator.state(), "channels": channels}

    def restore(self, saved: Mapping[str, Any], *, own: bool) -> None:
        """Go on with what `state` returned, before the first exchange.

        Args:
          own: whether it was this rank's own; seeds of another rank would repeat its dither.
        """
        if own:
            self.initiator.restore(saved["initiator"])
        for channel, one in zip(self.replica.channels, saved["channels"], strict=True):
            channel.restore(one)

    # Calls of the driver.

    def poll(self, now: float) -> Outbox:
        """What is due without a message: wanted exchanges, waiting requests, repetitions."""
        if self.initiator.is_wanted:
            self.gate.reach_boundary()
        out = self.responder.poll(now)
        out += self.initiator.start(now)
        out += self.initiator.poll(now)
        if not self.initiator.is_under_way:
            self.responder.give_up_silent(now)
        return self._stamped(out + self.membership.poll(now))

    def handle(self, message: Message, now: float) -> Outbox:
        """React to one message."""
        if not self.membership.update_last_seen(message, now):
            self._events.append(MessageDropped(f"it comes from rank {message.sender}"))
            return []
        return self._stamped(self._answer(message, now))

    def _answer(self, message: Message, now: float) -> Outbox:
        match message.kind:
            case Kind.REQUEST | Kind.CANCEL | Kind.ADOPT if self.membership.is_gone(message.sender):
                return []  # nobody waits for the answer
            case Kind.REQUEST:
                return self.responder.on_request(message, now)
            case Kind.REPLY:
                return self.initiator.on_reply(message, now)
            case Kind.REFUSE:
                return self.initiator.on_refusal(message, now)
            case Kind.CANCEL:
                return self.responder.on_cancel(message)
            case Kind.ADOPT:
                return self.responder.on_adopt(message)
            case Kind.PING:
                return self.membership.on_ping(message)
            case Kind.DONE if self.membership.on_done(message):
                reason = message.reason.sentence(message.sender)
                self._events.append(RankGone(message.sender, reason))
                self.initiator.on_gone(message.sender, reason, now)
                self.responder.on_gone(message.sender)
        return []

    def _stamped(self, out: Outbox) -> Outbox:
        """The messages with this node's local steps in each."""
        return [(to, replace(message, step=self.step)) for to, message in out]

    @property
    def may_change(self) -> bool:
        """Whether `poll` may change the view without a message to send, or an event."""
        return self.initiator.is_wanted or bool(self.gate.waiting)

    @property
    def has_events(self) -> bool:
        """Whether something has happened since `take_events`."""
        return bool(self._events)

    def take_events(self) -> list[Event]:
        """What has happened since the last call."""
        events = self._events[:]
        self._events.clear()
        return events

    def take_adopted(self) -> list[Floats] | None:
        """The model of a partner in chunks, if one has come since the last call."""
        return self.initiator.take_adopted()

    @property
    def view(self) -> View:
        """What the training thread may know, as of now."""
        initiator, membership = self.initiator, self.membership
        pending = initiator.pending_step
        return View(
            pending_step=pending,
            may_go_on=pending is None and self.gate.may_leave_boundary,
            settled=self.gate.settled,
            unanswered=initiator.unanswered,
            outstanding=initiator.outstanding,
            done=membership.done,
            failed=membership.failed,
            left=membership.left,
            stop_requested=membership.stop_requested,
            has_announced=membership.has_announced,
        )
