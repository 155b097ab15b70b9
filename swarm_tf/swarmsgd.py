"""SwarmSGD as a Keras callback: each rank trains its own model and averages it in pairs.

Nadiradze, Sabour, Davies, Li, Alistarh: "Asynchronous Decentralized SGD with Quantized and Local
Updates", NeurIPS 2021, arXiv 1910.12308. n nodes on a connected graph, with equal models x_i at
the start. Algorithm 1, at node i for ever:

    H local steps          x_i <- x_i - rate * gradient of rank i's data, H times
    partner                j   <- one of i's neighbours, uniformly at random
    average                x_i, x_j <- (x_i + x_j) / 2

So it is with mode="blocking". With mode="nonblocking", the default, others average with a replica
y_i while x_i trains on, and the result comes later as a correction c_i (all c_i are 0 at first):

    boundary of i          x_i <- x_i + c_i;   c_i <- 0;   y_i <- x_i
    exchange of i and j    c_i <- c_i + d/2;   c_j <- c_j - d/2       where d = Q(y_j) - Q(y_i)
                           y_i <- y_i + d/2;   y_j <- y_j - d/2

Q rounds to a lattice that both share, so the two corrections are exact opposites and the mean of
all models moves by local steps only. With mode="pull" only node i changes.

`SwarmCallback` says when (`should_exchange`), with whom (`choose_partner`) and what comes before
and after. A boundary is `swarm_tf.member`, an exchange `swarm_tf.protocol`, Q `swarm_tf.codec`;
docs/algorithm.md follows each symbol, examples/swarmsgd_in_numpy.py is the whole in NumPy.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import networkx as nx
import numpy as np

from swarm_tf import codec as codecs
from swarm_tf import local_steps as laws
from swarm_tf import state, validation
from swarm_tf import topology as topologies
from swarm_tf.algorithm import Algorithm
from swarm_tf.config import MODES
from swarm_tf.errors import UsageError
from swarm_tf.events import Counters, ExchangeEnded
from swarm_tf.member import Member
from swarm_tf.protocol.messages import Reason


class SwarmCallback(Algorithm):
    """Trains a Keras model with SwarmSGD (arXiv 1910.12308) over all ranks of an MPI job.

    Every rank trains its own copy on its own part of the data. After every few local steps it
    averages a quantized copy with a random neighbour, while training goes on.

    ```python
    data = data.shard(swarm_tf.size(), swarm_tf.rank())
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    model.fit(data, epochs=10, callbacks=[swarm_tf.SwarmCallback(local_steps=4, bits=8)])
    ```

    All ranks start from rank 0's weights. Alone, without a launcher, it does nothing and says so.
    To decide otherwise, override `should_exchange`, `choose_partner` or `on_exchange_end`.

    Args:
      local_steps: training steps (batches) between exchanges, H.
      bits: a weight on the wire, 2 to 8 or 16, for the lattice codec.
      mode: "nonblocking", "blocking" or "pull".
      codec: "lattice", "float32", "bfloat16" or "float16".
      topology: who may meet whom: a name of `topology.TOPOLOGIES`, or any connected
        `networkx.Graph` on the ranks.
      degree: of the topology "random_regular".
      local_steps_distribution: "fixed", or "geometric" with mean `local_steps`.
      max_staleness: local steps for which an unanswered exchange lets training go on, then it
        waits; default 4 * local_steps.
      seed: of partners, step counts and dither.
      record: a directory in which each rank writes down what every exchange did, for
        `python -m swarm_tf.history`; slow.
      common: see `Algorithm`.

    Raises:
      UsageError: a value breaks its rule.
    """

    name = "swarm"
    synchronous = False

    def __init__(
        self,
        local_steps: int = 4,
        bits: int = 8,
        *,
        mode: str = "nonblocking",
        codec: str = "lattice",
        topology: str | nx.Graph = "complete",
        degree: int = 4,
        local_steps_distribution: str = "fixed",
        max_staleness: int | None = None,
        seed: int = 0,
        record: str | os.PathLike[str] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(seed=seed, **common)
        self.record = record
        key, whole = f"{self.name}.", validation.whole_number
        seed, local_steps = self.settings["seed"], whole(f"{key}local_steps", local_steps)
        bits, degree = whole(f"{key}bits", bits), whole(f"{key}degree", degree)
        if max_staleness is None:
            max_staleness = 4 * local_steps
        self.settings |= {
            "local_steps": local_steps,
            "bits": bits,
            "mode": mode,
            "codec": codec,
            "topology": topology if isinstance(topology, str) else sorted(topology.edges),
            "degree": degree,
            "local_steps_distribution": local_steps_distribution,
            "max_staleness": whole(f"{key}max_staleness", max_staleness),
        }
        self.member: Member | None = None
        self._codec = codecs.build(codec, bits)
        self._steps = laws.build(local_steps_distribution, local_steps)
        if mode not in MODES:
            raise UsageError(f"swarm.mode={mode} must be one of {', '.join(MODES)}")
        rank = 0
        self.neighbors: list[int] = []
        if self.transport is not None:
            rank = self.transport.rank
            size = self.transport.size
            graph = topologies.resolve(topology, size, degree=degree, seed=seed)
            self.neighbors = topologies.neighbors(graph, rank)
        self._rng = np.random.default_rng([seed, rank, 2])
        self._next = 0

    def next_boundary(self, step: int) -> int:
        """The first local step after `step` that may be followed by an exchange."""
        if type(self).should_exchange is not SwarmCallback.should_exchange:
            return step + 1
        return max(self._next, step + 1)

    # What a user may decide otherwise.

    def should_exchange(self, step: int) -> bool:
        """Whether an exchange follows local step `step` (counted from 1)."""
        if step < self._next:
            return False
        self._next = step + self._steps.draw(self._rng)
        return True

    def choose_partner(self, neighbors: list[int], rng: np.random.Generator) -> int:
        """The rank to average with; uniform over the neighbours."""
        return int(neighbors[rng.integers(len(neighbors))])

    def on_exchange_end(self, exchange: ExchangeEnded) -> None:
        """Called on the training thread at the boundary after an own exchange ended."""

    # What the swarm does.

    def begin(self, common: dict[str, Any]) -> None:
        """Join the swarm."""
        assert self.transport is not None
        assert self.weights is not None
        self.member = Member(
            self.weights,
            self.transport,
            self._codec,
            self.settings["mode"],
            max_staleness=self.settings["max_staleness"],
            seed=self.settings["seed"],
            timeout_seconds=self.timeout_seconds,
            fingerprint=_fingerprint(common),
            on_adopt=self._start_afresh,
            record=self.record,
        )
        averaged = {id(v) for v in self.weights.variables}
        own = [v for v in state.moving_statistics(self.model) if id(v) not in averaged]
        self._own_statistics = [(v, np.array(v)) for v in own]
        self.member.start()
        self._next = self.local_step() + self._steps.draw(self._rng)

    def boundary(self, step: int) -> None:
        """Exchange, if it is time."""
        assert self.member is not None
        if self.should_exchange(step):
            for exchange in self.member.boundary(step, self._choose):
                self.on_exchange_end(exchange)

    def _choose(self) -> int:
        assert self.member is not None
        # If none is left, any of them: the exchange fails, and the log says why.
        among = self.member.reachable(self.neighbors) or self.neighbors
        partner = self.choose_partner(among, self._rng)
        if partner not in self.neighbors:
            raise UsageError(
                f"choose_partner returned {partner!r}; it must be a neighbour: "
                f"{', '.join(map(str, self.neighbors))}"
            )
        return int(partner)

    def end(self, step: int) -> None:
        """Serve until all ranks are done."""
        assert self.member is not None
        for exchange in self.member.finish(
            step, lambda: super(SwarmCallback, self).stop_requested, self.neighbors
        ):
            self.on_exchange_end(exchange)

    def abandon(self, *, exits: bool = False) -> None:
        """Tell the others: they go on if this training failed, and end if its program ends."""
        if self.member is not None:
            self.member.leave_swarm(Reason.LEFT if exits else Reason.FAILED)

    def _start_afresh(self) -> None:
        """The weights are a neighbour's now; what is not averaged begins anew."""
        state.reset_slots(self.model)
        for variable, at_start in self._own_statistics:
            if not np.isfinite(np.asarray(variable)).all():
                variable.assign(at_start)

    @property
    def stop_requested(self) -> bool:
        """Whether a signal to this rank, or to one that has told us, ends the training."""
        return super().stop_requested or (self.member is not None and self.member.stop_requested)

    @property
    def counters(self) -> Counters:
        """What this rank has exchanged so far."""
        return self.member.counters if self.member else Counters()


def _fingerprint(settings: dict[str, Any]) -> int:
    """64 bits that stand for the settings of a swarm."""
    text = json.dumps(settings, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
