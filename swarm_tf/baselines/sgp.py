"""SGP, stochastic gradient push: models are pushed along a directed graph, and weighed.

Assran, Loizou, Ballas, Rabbat 2019, arXiv 1811.10792, algorithm 1 (and 2 with `overlap`).

    x_i <- x_i - optimizer step at z_i = x_i / w_i
    send p x_i and p w_i to out-neighbours, keep as much      p = 1 / (1 + out-neighbours)
    x_i <- sum of what was kept and received;  w_i likewise

The sum of all w stays N. On the directed exponential graph, where rank i sends to i + 2^(k mod L)
in round k, every rank sends to one and receives from one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swarm_tf import consensus
from swarm_tf.algorithm import Algorithm
from swarm_tf.transport import jobs
from swarm_tf.transport.base import Array


@dataclass
class _Push:
    """What a rank kept in a round, and what is coming from its in-neighbours."""

    kept: list[Array]
    received: list[dict[int, Array]]
    handles: list[jobs.Handle] = field(default_factory=list)

    def joined(self, kept: list[Array]) -> _Push:
        """The same with what was kept in another round."""
        nothing: list[dict[int, Array]] = [{} for _ in kept]
        return _Push(kept, self.received or nothing, self.handles)

    def total(self) -> list[Array]:
        """Kept and received together, when it has come."""
        for handle in self.handles:
            handle.wait()
        pairs = zip(self.kept, self.received, strict=True)
        return [sum(theirs.values(), start=own) for own, theirs in pairs]


class SGP(Algorithm):
    """Push-sum over directed edges, in step with each other.

    Args:
      overlap: receive in the next round what is sent in this one, so that it travels during the
        step in between (overlap-SGP with tau = 1).
      common: see `Algorithm`.

    Attributes:
      weight: w_i.
    """

    name = "sgp"

    def __init__(self, *, overlap: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.settings["overlap"] = overlap
        self.overlap = overlap
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
        self._background = jobs.Background(self.transport.rank)
        self._background.start()
        self._round, self.weight = 0, 1.0
        self._z = consensus.copy(self.weights)
        self._under_way = _Push([], [])

    def boundary(self, step: int) -> None:
        """Push, and take in what was pushed here."""
        with self.exposed():
            pushed = self._push()
            if self.overlap:
                pushed, self._under_way = self._under_way.joined(pushed.kept), pushed
            self._become(pushed.total())

    def end(self, step: int) -> None:
        """Take in what is still under way."""
        self._become(self._under_way.joined(self._state()).total())
        self._background.stop()

    def _state(self) -> list[Array]:
        """x in chunks, and w: float64 [1]."""
        assert self.weights is not None
        # The step was taken from z, and belongs to x: x = w z + (z after the step - z).
        lag = np.float32(self.weight - 1)
        state: list[Array] = consensus.copy(self.weights)
        for x, before in zip(state, self._z, strict=True):
            x += lag * before
        return [*state, np.array([self.weight])]

    def _become(self, state: list[Array]) -> None:
        assert self.weights is not None
        *x, weight = state
        self.weight = float(weight[0])
        self._z = [np.asarray(chunk / np.float32(self.weight), np.float32) for chunk in x]
        self.weights.assign(self._z)

    def _push(self) -> _Push:
        """Send each out-neighbour its part, and begin to receive; keep the rest."""
        assert self.transport is not None
        rank, size, round = self.transport.rank, self.transport.size, self._round
        self._round += 1
        out = self.out_neighbors(rank, round)
        sources = [r for r in range(size) if rank in self.out_neighbors(r, round)]
        kept = [array / array.dtype.type(1 + len(out)) for array in self._state()]
        received = [{source: np.empty_like(array) for source in sources} for array in kept]
        handles = []
        for part, (array, into) in enumerate(zip(kept, received, strict=True)):
            tag = 2 * part + round % 2  # of two rounds that overlap
            swap = jobs.swap(
                self.transport, dict.fromkeys(out, array), into, tag, self.timeout_seconds
            )
            handles.append(self._background.submit(swap))
        return _Push(kept, received, handles)
