"""SGP, stochastic gradient push: models are pushed along a directed graph, and weighed.

Assran, Loizou, Ballas, Rabbat 2019, arXiv 1811.10792, algorithm 1 (and 2 with `overlap`).

    x_i <- x_i - optimizer step at z_i = x_i / w_i
    send p x_i and p w_i to out-neighbours, keep as much      p = 1 / (1 + out-neighbours)
    x_i <- sum of what was kept and received;  w_i likewise

The sum of all w stays N. On the directed exponential graph, where rank i sends to i + 2^(k mod L)
in round k, every rank sends to one and receives from one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from swarm_tf import consensus
from swarm_tf.algorithm import Algorithm
from swarm_tf.options import ANY, Options, option, with_options
from swarm_tf.transport import collectives
from swarm_tf.transport.base import Array

# For each part of the state: the transfers of a round, and what they bring, by its sender.
_Coming = list[tuple[collectives.Handle, dict[int, Array]]]


@dataclass
class SGPConfig(Options):
    """Stochastic gradient push."""

    overlap: bool = option(
        False,
        ANY,
        "receive in the next round what is sent in this one, so that it travels during the step "
        "in between (overlap-SGP with tau = 1)",
    )


@with_options
class SGP(SGPConfig, Algorithm):
    """Push-sum over directed edges, in step with each other.

    Attributes:
      weight: w_i.
    """

    name = "sgp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weight = 1.0

    def out_neighbors(self, rank: int, round: int) -> list[int]:
        """Whom `rank` sends to in a round, counted from 0; all ranks must agree."""
        assert self.transport is not None
        size = self.transport.size
        hops = (size - 1).bit_length()
        if size == 1:
            return []
        return [(rank + 2 ** (round % hops)) % size]

    def begin(self, common: dict[str, Any]) -> None:
        """Nothing is under way."""
        assert self.weights is not None
        assert self.transport is not None
        self._background = collectives.Background(self.transport.rank)
        self._background.start()
        self._round, self.weight = 0, 1.0
        self._z = consensus.copy(self.weights)
        self._under_way: _Coming = []

    def boundary(self, step: int) -> None:
        """Push, and take in what was pushed here."""
        with self.exposed():
            kept, coming = self._push()
            if self.overlap:
                coming, self._under_way = self._under_way, coming
            self._become(kept, coming)

    def end(self, step: int) -> None:
        """Take in what is still under way."""
        self._become(self._state(), self._under_way)
        self._background.stop()

    def abandon(self, *, exits: bool = False) -> None:
        """Leave what is under way to itself."""
        self._background.stop(wait=False)

    def _state(self) -> list[Array]:
        """x in chunks, and w: float64 [1]."""
        assert self.weights is not None
        # The step was taken from z, and belongs to x: x = w z + (z after the step - z).
        lag = np.float32(self.weight - 1)
        state: list[Array] = consensus.copy(self.weights)
        for x, before in zip(state, self._z, strict=True):
            x += lag * before
        return [*state, np.array([self.weight])]

    def _become(self, kept: list[Array], coming: _Coming) -> None:
        """Add what comes to what was kept."""
        assert self.weights is not None
        state = list(kept)
        for part, (handle, received) in enumerate(coming):
            handle.wait()
            state[part] = sum(received.values(), start=state[part])
        *x, weight = state
        self.weight = float(weight[0])
        self._z = [chunk / chunk.dtype.type(self.weight) for chunk in x]
        self.weights.assign(self._z)

    def _push(self) -> tuple[list[Array], _Coming]:
        """Send each out-neighbour its part, and begin to receive; keep the rest."""
        assert self.transport is not None
        rank, size, round = self.transport.rank, self.transport.size, self._round
        self._round += 1
        out = self.out_neighbors(rank, round)
        sources = [r for r in range(size) if rank in self.out_neighbors(r, round)]
        kept = [array / array.dtype.type(1 + len(out)) for array in self._state()]
        coming = []
        for part, array in enumerate(kept):
            # Two rounds overlap.
            tag = collectives.session_tag(self.transport, 2 * part + round % 2)
            own, into = dict.fromkeys(out, array), {r: np.empty_like(array) for r in sources}
            swap = collectives.sendrecv(self.transport, own, into, tag, self.timeout_seconds)
            coming.append((self._background.submit(swap), into))
        return kept, coming
