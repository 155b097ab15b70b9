"""Who is still there: last signs of life, who has taken its last step, who is gone."""

from __future__ import annotations

from swarm_tf.protocol.messages import Kind, Message, Outbox, Reason

_HEARTBEAT_SECONDS = 1.0


class Membership:
    """What a node knows of the others, and tells them of itself.

    Attributes:
      done: ranks that have taken their last step, or train no more.
      failed: of these, by an exception in their training.
      left: of these, by the end of their program.
      stop_requested: by a signal, here or elsewhere, so that all should end.
      last_seen: of each other rank, when, and after how many local steps.
      parted: why the own node takes no part any more, if so.
    """

    def __init__(self, rank: int, size: int, now: float) -> None:
        self.rank = rank
        self.done: frozenset[int] = frozenset()
        self.failed: frozenset[int] = frozenset()
        self.left: frozenset[int] = frozenset()
        self.stop_requested = False
        self.last_seen = {other: (now, 0) for other in range(size) if other != rank}
        self.parted = Reason.NONE
        # A node that trains sends no heartbeats: those who wait for it ask.
        self._must_announce = False
        self._heartbeat_at: float | None = None

    def is_gone(self, rank: int) -> bool:
        """Whether there is nothing to average with any more."""
        return rank in self.failed or rank in self.left

    def see(self, message: Message, now: float) -> bool:
        """Note a sign of life; False if it comes from no other rank of this swarm."""
        if message.sender not in self.last_seen:
            return False
        self.last_seen[message.sender] = now, message.step
        return True

    # The own node.

    def finish(self, now: float) -> None:
        """The own steps are over; `poll` announces it, and asks those for whom it waits."""
        self.last_seen = {other: (now, step) for other, (_, step) in self.last_seen.items()}
        self._announce()

    def request_stop(self) -> None:
        """A signal ends this rank, so the others too; told at once if it waits already."""
        if not self.stop_requested:
            self.stop_requested = True
            self._must_announce |= self._heartbeat_at is not None

    def part(self, reason: Reason) -> None:
        """Take no part any more; `poll` announces it."""
        self.parted = reason
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
        """Announce the end once; from then on ask those who have not ended whether they live."""
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
        """Another rank has ended; returns whether it is gone, and was not before."""
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
        return Message(Kind.DONE, self.rank, reason=self.parted or reason)
