"""Which ranks are still there: last messages, who has taken its last step, who has left."""

from __future__ import annotations

from swarm_tf.protocol.messages import Kind, Message, Outbox, Reason

_HEARTBEAT_SECONDS = 1.0


class Membership:
    """What a node knows of the other ranks, and announces to them of itself.

    Attributes:
      done: ranks that have taken their last step, or train no more.
      failed: those of them whose training ended by an exception.
      left: those of them whose program has ended.
      stop_requested: a signal to this rank or another one has asked all to stop.
      last_seen: for each other rank, when its last message came, and its local steps then.
      leave_reason: why this node has left the swarm; NONE if it has not.
    """

    def __init__(self, rank: int, size: int, now: float) -> None:
        self.rank = rank
        self.done: frozenset[int] = frozenset()
        self.failed: frozenset[int] = frozenset()
        self.left: frozenset[int] = frozenset()
        self.stop_requested = False
        self.last_seen = {other: (now, 0) for other in range(size) if other != rank}
        self.leave_reason = Reason.NONE
        # A node that trains sends no heartbeats: nodes that wait for it send a PING.
        self._must_announce = False
        self._heartbeat_at: float | None = None

    def is_gone(self, rank: int) -> bool:
        """Whether a rank has failed or left."""
        return rank in self.failed or rank in self.left

    def update_last_seen(self, message: Message, now: float) -> bool:
        """Note the time of a message; False if its sender is no other rank of this swarm."""
        if message.sender not in self.last_seen:
            return False
        _, step = self.last_seen[message.sender]
        self.last_seen[message.sender] = now, max(step, message.step)
        return True

    # This node.

    def finish(self, now: float) -> None:
        """This node has taken its last step; `poll` announces it, and pings ranks that train on."""
        self.last_seen = {other: (now, step) for other, (_, step) in self.last_seen.items()}
        self._announce()

    def request_stop(self) -> None:
        """A signal has asked all ranks to stop; announced at once if this one has finished."""
        if not self.stop_requested:
            self.stop_requested = True
            self._must_announce |= self._heartbeat_at is not None

    def leave_swarm(self, reason: Reason) -> None:
        """Leave the swarm; `poll` announces it."""
        self.leave_reason = reason
        self._announce()

    def _announce(self) -> None:
        self.done |= {self.rank}
        self._must_announce = True

    @property
    def has_announced(self) -> bool:
        """Whether `poll` has sent the last announcement."""
        return not self._must_announce

    # Messages.

    def poll(self, now: float) -> Outbox:
        """Announce the end once; from then on ping the ranks that have not ended."""
        if self._must_announce:
            self._must_announce, self._heartbeat_at = False, now
            return [(rank, self._done()) for rank in self.last_seen]
        if self._heartbeat_at is None or now - self._heartbeat_at < _HEARTBEAT_SECONDS:
            return []
        self._heartbeat_at = now
        heartbeat = Message(Kind.PING, self.rank)
        return [(rank, heartbeat) for rank in self.last_seen if rank not in self.done]

    def on_ping(self, message: Message) -> Outbox:
        """PONG; or DONE again, since the first may have been lost."""
        alive = self._done() if self.rank in self.done else Message(Kind.PONG, self.rank)
        return [(message.sender, alive)]

    def on_done(self, message: Message) -> bool:
        """Another rank has ended. True at the first news that it has failed or left."""
        sender, reason = message.sender, message.reason
        self.done |= {sender}
        self.stop_requested |= reason is Reason.SIGNAL
        if reason not in (Reason.FAILED, Reason.LEFT) or self.is_gone(sender):
            return False
        if reason is Reason.LEFT:
            self.left |= {sender}
        else:
            self.failed |= {sender}
        return True

    def _done(self) -> Message:
        reason = Reason.SIGNAL if self.stop_requested else Reason.NONE
        return Message(Kind.DONE, self.rank, reason=self.leave_reason or reason)
