"""The gate of a node: it serves requests at any moment, or blocking at its boundary only.

Blocking mode is the paper's Algorithm 1: a node that finished its local steps waits until it has
averaged with one other node, and the two average undisturbed. A node is

    TRAINING    its model changes; requests wait until it reaches its boundary
    FREE        at its boundary (or done with its own steps); it serves whoever comes first
    REQUESTING  at its boundary, its own request not answered yet
    PAIRED      at its boundary, in an exchange; other requests wait until that is over

One averaging settles a boundary: after it only requests that are waiting at that moment are served.
Later ones, even the partner's, wait for the next boundary.

No deadlock: a REQUESTING node lets only lower ranks wait for it. Higher ranks are refused
as BUSY; they become FREE again, serve the requests that wait for them, and try another node.
"""

from __future__ import annotations

import enum

from swarm_tf.protocol.messages import Message, Reason


class State(enum.Enum):
    """Where a node of a blocking swarm is."""

    TRAINING = enum.auto()
    FREE = enum.auto()
    REQUESTING = enum.auto()
    PAIRED = enum.auto()


TRANSITIONS = {
    (State.TRAINING, "reach_boundary"): State.FREE,
    (State.FREE, "start_request"): State.REQUESTING,
    (State.FREE, "pair"): State.PAIRED,
    (State.REQUESTING, "pair"): State.PAIRED,
    (State.REQUESTING, "end_exchange"): State.FREE,
    (State.PAIRED, "end_exchange"): State.FREE,
    (State.FREE, "leave_boundary"): State.TRAINING,
    (State.REQUESTING, "leave_boundary"): State.TRAINING,
    (State.PAIRED, "leave_boundary"): State.TRAINING,
}
"""(State, method of `Gate`) -> next state of a blocking node. Other pairs leave it where it is."""


class Gate:
    """The boundary of one node; if not `blocking`, it admits all but crossed requests.

    Attributes:
      state: where the node is.
      partner: the rank that the node is paired with.
      settled: whether the node has averaged at this boundary, or its exchange has failed.
      waiting: requests that are not served yet, in the order in which they came.
      finished: whether the node has taken its last step.
    """

    def __init__(self, rank: int, blocking: bool) -> None:
        self.rank, self.blocking = rank, blocking
        self.state = State.TRAINING if blocking else State.FREE
        self.partner: int | None = None
        self.settled = False
        self.waiting: list[Message] = []
        self._must_serve: frozenset[tuple[int, int]] = frozenset()
        self.finished = False

    # Requests.

    def admit(self, request: Message, crossed: bool) -> Reason | bool:
        """What becomes of a request. True: serve now. False: let it wait. A reason: refuse.

        `crossed` says that an unanswered request of this node to the sender is on its way: one
        exchange is enough, the lower rank's.
        """
        if not self.blocking:
            return Reason.CROSSED if crossed and self.rank < request.sender else True
        if self.state is State.REQUESTING and request.sender > self.rank:
            return Reason.BUSY
        return self.can_serve(request)

    def can_serve(self, request: Message) -> bool:
        """(blocking) Whether this request may be served now."""
        if self.state is State.PAIRED:
            return self.partner == request.sender
        unsettled = not self.settled or self.finished
        return self.state is State.FREE and (unsettled or _key(request) in self._must_serve)

    def queue(self, request: Message) -> None:
        """Let a request wait; a second copy of it changes nothing."""
        chunk = (*_key(request), request.chunk)
        if chunk not in ((*_key(other), other.chunk) for other in self.waiting):
            self.waiting.append(request)

    def drop(self, sender: int, exchange: int | None = None) -> None:
        """Drop the waiting requests of `sender`, or of one exchange of it."""
        self.waiting = [
            request
            for request in self.waiting
            if request.sender != sender or exchange not in (None, request.exchange)
        ]

    # The node.

    @property
    def may_leave_boundary(self) -> bool:
        """(blocking) Whether no exchange holds the node at its boundary."""
        must_serve = any(_key(request) in self._must_serve for request in self.waiting)
        return self.state is not State.PAIRED and not must_serve

    def reach_boundary(self) -> None:
        """The node stands at its boundary."""
        if self.state is State.TRAINING:
            self.settled = False
        self._go("reach_boundary")

    def leave_boundary(self) -> None:
        """The node trains on."""
        if self.blocking:
            self.settled, self._must_serve = False, frozenset()
        self._go("leave_boundary")

    def finish(self) -> None:
        """The node has taken its last step and serves everybody."""
        self.reach_boundary()
        self.finished = True

    def start_request(self) -> None:
        """This node sends a request of its own."""
        self._go("start_request")

    def pair(self, partner: int) -> None:
        """An exchange with `partner` has begun."""
        self._go("pair")
        if self.state is State.PAIRED:
            self.partner = partner

    def end_exchange(self, *, settles: bool) -> None:
        """The exchange is over; if it `settles`, only requests that wait now are still served."""
        if settles and not self.settled:
            self.settled = True
            self._must_serve = frozenset(_key(request) for request in self.waiting)
        self._go("end_exchange")
        if self.state is State.FREE:
            self.partner = None

    def _go(self, method: str) -> None:
        if self.blocking:
            self.state = TRANSITIONS.get((self.state, method), self.state)


def diagram() -> str:
    """The transitions as a state diagram in Mermaid's language, for docs/protocol.md."""
    lines = [f"    {a.name} --> {b.name}: {method}" for (a, method), b in TRANSITIONS.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.TRAINING.name}", *lines])


def _key(request: Message) -> tuple[int, int]:
    return request.sender, request.exchange


if __name__ == "__main__":
    print(diagram())
