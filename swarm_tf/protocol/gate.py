"""When a node serves a request: at any moment, or in blocking mode only at its boundary.

Blocking mode is the paper's Algorithm 1: a node that finished its local steps waits until it has
averaged with one other node, and the two average undisturbed. A node is

    TRAINING   its model changes; requests wait until it reaches its boundary
    FREE       at its boundary (or done with its own steps); it serves whoever comes first
    ASKING     at its boundary, its own request not answered yet
    PAIRED     at its boundary, in an exchange; other requests wait until that is over

One averaging settles a boundary: afterwards only those are served who waited by then, and a quick
partner's next request waits for the next boundary.

Waiting cannot close a cycle: a node that waits itself (ASKING) lets only lower ranks wait for it
and tells higher ones that it is busy, and then they are FREE, serve those who wait for them, and
ask somebody else.
"""

from __future__ import annotations

import enum
from collections.abc import Collection

from swarm_tf.protocol.messages import Reason


class State(enum.Enum):
    """Where a node of a blocking swarm is."""

    TRAINING = enum.auto()
    FREE = enum.auto()
    ASKING = enum.auto()
    PAIRED = enum.auto()


class Admission:
    """The boundary of one node; `blocking` off admits everything but crossed requests.

    Not locked: the node that owns it is.
    """

    def __init__(self, rank: int, blocking: bool) -> None:
        self.rank, self.blocking = rank, blocking
        self.state = State.TRAINING if blocking else State.FREE
        self.partner: int | None = None
        self.averaged = False
        self._promised: frozenset[tuple[int, int]] = frozenset()
        self._finished = False

    def admit(self, sender: int, crossed: bool, exchange: int = 0) -> Reason | bool:
        """What becomes of a request. True: serve now. False: let it wait. A reason: refuse.

        `crossed` says that our own unanswered request to `sender` is on its way: one exchange is
        enough, the lower rank's.
        """
        if not self.blocking:
            return Reason.CROSSED if crossed and self.rank < sender else True
        if self.state is State.ASKING and sender > self.rank:
            return Reason.BUSY
        return self.welcomes(sender, exchange)

    def welcomes(self, sender: int, exchange: int = 0) -> bool:
        """(blocking) Whether this request may be served now."""
        if self.state is State.PAIRED:
            return self.partner == sender
        unsettled = not self.averaged or self._finished
        return self.state is State.FREE and (unsettled or self.promised(sender, exchange))

    def promised(self, sender: int, exchange: int) -> bool:
        """(blocking) Whether the node may not leave its boundary before serving this request."""
        return (sender, exchange) in self._promised

    def reach(self) -> None:
        """The node stands at its boundary."""
        if self.state is State.TRAINING:
            self.state, self.averaged = State.FREE, False

    def leave(self) -> None:
        """The node trains on."""
        if self.blocking:
            self.state, self.averaged = State.TRAINING, False
            self._promised = frozenset()

    def finish(self) -> None:
        """The node has taken its last step and serves everybody."""
        self.reach()
        self._finished = True

    def ask(self) -> None:
        """Our own request goes out."""
        if self.blocking:
            self.state = State.ASKING

    def pair(self, partner: int) -> None:
        """An exchange with `partner` has begun."""
        if self.blocking and self.state is not State.TRAINING:
            self.state, self.partner = State.PAIRED, partner

    def part(self, averaged: bool, waiting: Collection[tuple[int, int]] = ()) -> None:
        """The exchange is over; `waiting`: (sender, exchange) of the requests that wait."""
        if averaged and not self.averaged:
            self.averaged, self._promised = True, frozenset(waiting)
        if self.blocking and self.state is not State.TRAINING:
            self.state, self.partner = State.FREE, None
