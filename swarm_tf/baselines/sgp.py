"""SGP, stochastic gradient push: push-sum averaging along a directed graph.

Assran, Loizou, Ballas, Rabbat 2019, arXiv 1811.10792, algorithm 1 (and 2 with `overlap`).

    z_i <- x_i / w_i
    x_i, z_i <- both moved by the optimizer step at z_i          H local steps; 1 in the paper
    send p x_i and p w_i to each out-neighbour, keep p x_i and p w_i    p = 1 / (1 + out-neighbours)
    x_i <- sum of the kept and the received x;  w_i <- sum of the kept and the received w

The sum of all w is always N. On the directed exponential graph, where rank i sends to
i + 2^(k mod L) in round k, every rank sends to one rank and receives from one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from swarm_tf import consensus
from swarm_tf.algorithm import Algorithm
from swarm_tf.options import ANY, Options, at_least, option, with_options
from swarm_tf.transport import collectives
from swarm_tf.transport.base import Array

# For each array of the state: the transfer of a round (None: it is over), and the received arrays
# by sender.
_Transfers = list[tuple[collectives.Handle | None, dict[int, Array]]]


@dataclass
class SGPConfig(Options):
    """Options of stochastic gradient push."""

    overlap: bool = option(
        False,
        ANY,
        "receive in the next round what is sent in this round, so that the transfer overlaps with "
        "the steps between them (overlap-SGP with tau = 1)",
    )
    local_steps: int = option(1, at_least(1), "H, local steps between two rounds")


@with_options
class SGP(SGPConfig, Algorithm):
    """Synchronous push-sum over directed edges.

    Attributes:
      weight: w_i, the push-sum weight of this rank.
    """

    name = "sgp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weight = 1.0

    def next_boundary(self, step: int) -> int:
        """Every H steps."""
        return step + self.local_steps

    def out_neighbors(self, rank: int, round: int) -> list[int]:
        """The ranks that `rank` sends to in a round (counted from 0); the same on all ranks."""
        assert self.transport is not None
        size = self.transport.size
        hops = (size - 1).bit_length()
        if size == 1:
            return []
        return [(rank + 2 ** (round % hops)) % size]

    def begin(self, common: dict[str, Any]) -> None:
        """Start the thread that transfers models."""
        assert self.weights is not None
        assert self.transport is not None
        self._background = collectives.Background(self.transport.rank)
        self._background.start()
        self._round, self.weight = 0, 1.0
        self._z = consensus.copy(self.weights)
        self._delayed: _Transfers = []
        if self.resumed is not None:
            self._round = self.resumed["round"]
        if self.resumed is not None and self.resumed["own"]:
            self.weight = self.resumed["weight"]
            self._z = list(self.resumed["z"])
            self._delayed = [
                (None, {int(sender): x for sender, x in received.items()})
                for received in self.resumed["delayed"]
            ]

    def state(self) -> dict[str, Any]:
        """See `Algorithm`; waits for what is under way."""
        for handle, _ in self._delayed:
            if handle is not None:
                handle.wait()
        return {
            **super().state(),
            "round": self._round,
            "weight": self.weight,
            "z": [chunk.copy() for chunk in self._z],
            "delayed": [
                {str(sender): x.copy() for sender, x in received.items()}
                for _, received in self._delayed
            ],
        }

    def boundary(self, step: int) -> None:
        """Send to the out-neighbours, and add what this rank receives."""
        with self.exposed():
            kept, transfers = self._push()
            if self.overlap:
                transfers, self._delayed = self._delayed, transfers
            self._receive(kept, transfers)

    def end(self, step: int) -> None:
        """Add what was sent in the last round."""
        self._receive(self._state(), self._delayed)
        self._delayed = []
        self._background.stop()

    def abandon(self, *, exits: bool = False) -> None:
        """Stop without waiting for the transfers that have begun."""
        self._background.stop(wait=False)

    def _state(self) -> list[Array]:
        """The chunks of x, then w as float64 [1]."""
        assert self.weights is not None
        # The steps were taken from z and must be added to x: x = w z + (z after the steps - z).
        lag = np.float32(self.weight - 1)
        state: list[Array] = consensus.copy(self.weights)
        for x, before in zip(state, self._z, strict=True):
            x += lag * before
        return [*state, np.array([self.weight])]

    def _receive(self, kept: list[Array], transfers: _Transfers) -> None:
        """Wait for the transfers, add their arrays to `kept`, and assign the result."""
        assert self.weights is not None
        state = list(kept)
        for number, (handle, received) in enumerate(transfers):
            if handle is not None:
                handle.wait()
            state[number] = sum(received.values(), start=state[number])
        *x, weight = state
        self.weight = float(weight[0])
        self._z = [chunk / chunk.dtype.type(self.weight) for chunk in x]
        self.weights.assign(self._z)

    def _push(self) -> tuple[list[Array], _Transfers]:
        """Begin to send to out-neighbours and to receive; return what this rank keeps."""
        assert self.transport is not None
        rank, size, round = self.transport.rank, self.transport.size, self._round
        self._round += 1
        out = self.out_neighbors(rank, round)
        sources = [r for r in range(size) if rank in self.out_neighbors(r, round)]
        kept = [array / array.dtype.type(1 + len(out)) for array in self._state()]
        transfers: _Transfers = []
        for number, array in enumerate(kept):
            # Transfers of two rounds may overlap, so consecutive rounds have different tags.
            tag = collectives.session_tag(self.transport, 2 * number + round % 2)
            own, into = dict.fromkeys(out, array), {r: np.empty_like(array) for r in sources}
            transfer = collectives.sendrecv(self.transport, own, into, tag, self.timeout_seconds)
            transfers.append((self._background.submit(transfer), into))
        return kept, transfers
