"""SwarmCallback: one line that makes `model.fit` train in a swarm."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from typing import Any

import keras
import networkx as nx
import numpy as np

from swarm_tf import codec as codecs
from swarm_tf import local_steps as laws
from swarm_tf import topology as topologies
from swarm_tf import world
from swarm_tf.config import MODES
from swarm_tf.errors import UsageError
from swarm_tf.exchange import Exchange
from swarm_tf.member import Member
from swarm_tf.metrics import Counters
from swarm_tf.transport.base import Transport
from swarm_tf.weights import FlatWeights, averaged_variables

_log = logging.getLogger("swarm_tf")


class SwarmCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Trains a Keras model with SwarmSGD (arXiv 1910.12308) over all ranks of an MPI job.

    Every rank trains its own copy on its own part of the data. After every few local steps it
    averages a quantized copy with a random neighbour, while training goes on.

    ```python
    ds = load(...).shard(swarm_tf.size(), swarm_tf.rank())
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    model.fit(ds, epochs=10, callbacks=[swarm_tf.SwarmCallback(local_steps=4, bits=8)])
    ```

    All ranks start from rank 0's weights. Alone, without a launcher, it does nothing and says so.
    To decide otherwise, override `should_exchange`, `choose_partner` or `on_exchange_end`.

    Args:
      local_steps: optimizer steps between exchanges, H.
      bits: a weight on the wire, 2 to 8 or 16, for the lattice codec.
      mode: "nonblocking", "blocking" or "pull".
      codec: "lattice", "float32", "bfloat16" or "float16".
      topology: who may meet whom: a name of `topology.TOPOLOGIES`, or any connected
        `networkx.Graph` on the ranks.
      degree: of the topology "random_regular".
      local_steps_distribution: "fixed", or "geometric" with mean `local_steps`.
      max_staleness: local steps for which an unanswered exchange lets training go on, then it
        waits; default 4 * local_steps.
      average_statistics: average the moving statistics of BatchNormalization too.
      average_optimizer: average momentum and other optimizer slots too.
      average_at_end: leave every rank with the mean model after training.
      seed: of partners, step counts and dither; the same on all ranks.
      timeout_seconds: longest wait for another rank.
      transport: other than MPI; for tests and simulations.

    Raises:
      UsageError: a value breaks its rule.
    """

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
        average_statistics: bool = True,
        average_optimizer: bool = False,
        average_at_end: bool = True,
        seed: int = 0,
        timeout_seconds: float = 60.0,
        transport: Transport | None = None,
    ) -> None:
        super().__init__()
        self.transport = transport or world.transport()
        self.settings: dict[str, Any] = {
            "local_steps": local_steps,
            "bits": bits,
            "mode": mode,
            "codec": codec,
            "topology": topology if isinstance(topology, str) else sorted(topology.edges),
            "degree": degree,
            "local_steps_distribution": local_steps_distribution,
            "max_staleness": 4 * local_steps if max_staleness is None else max_staleness,
            "average_statistics": average_statistics,
            "average_optimizer": average_optimizer,
            "seed": seed,
        }
        self.average_at_end = average_at_end
        self.timeout_seconds = timeout_seconds
        self.member: Member | None = None
        self._codec = codecs.build(codec, bits)
        self._steps = laws.build(local_steps_distribution, local_steps)
        if mode not in MODES:
            raise UsageError(f"swarm.mode={mode} must be one of {', '.join(MODES)}")
        rank = 0
        self.neighbors: list[int] = []
        if self.transport is not None:
            rank = self.transport.rank
            self.neighbors = _neighbors(topology, rank, self.transport.size, degree, seed)
        self._rng = np.random.default_rng([seed, rank, 2])
        self._next = 0
        self._has_trained = False

    def next_boundary(self, step: int) -> int:
        """The first local step after `step` that may be followed by an exchange."""
        if self.member is None:
            return sys.maxsize
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

    def on_exchange_end(self, exchange: Exchange) -> None:
        """Called on the training thread at the boundary after an own exchange ended."""

    # Keras' hooks.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Join the swarm, with rank 0's weights."""
        if self.transport is None:
            _log.warning("one rank, no launcher: training alone; start with mpirun -n N to swarm")
            return
        # A model that Keras builds from its first batch joins after that batch.
        self.member = None
        if self._variables():
            self._join()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Exchange, where a boundary is reached."""
        if self.transport is None:
            return
        if self.member is None:
            self._join()
            return
        step = self._local_step()
        if self.should_exchange(step):
            choose = lambda: self.choose_partner(self.neighbors, self._rng)  # noqa: E731
            for exchange in self.member.boundary(step, choose):
                self.on_exchange_end(exchange)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Serve until all ranks are done; then take the mean model, if that is asked for."""
        if self.member is None:
            return
        for exchange in self.member.finish(self._local_step()):
            self.on_exchange_end(exchange)
        if self.average_at_end:
            self.member.assign(self.member.mean())

    def _variables(self) -> list[keras.Variable]:
        return averaged_variables(
            self.model,
            statistics=self.settings["average_statistics"],
            optimizer=self.settings["average_optimizer"],
        )

    def _join(self) -> None:
        assert self.transport is not None
        settings, weights = self.settings, FlatWeights(self._variables())
        common = {f"swarm.{key}": value for key, value in settings.items()}
        common["the model's weights"] = weights.shapes()
        world.agree(self.transport, "the start of training", common)
        self.member = Member(
            weights,
            self.transport,
            self._codec,
            settings["mode"],
            max_staleness=settings["max_staleness"],
            seed=settings["seed"],
            timeout_seconds=self.timeout_seconds,
            fingerprint=_fingerprint(common),
        )
        # A second training goes on with each rank's own weights.
        self.member.start(from_rank_0=not self._has_trained)
        self._has_trained = True
        self._next = self._local_step() + self._steps.draw(self._rng)

    def _local_step(self) -> int:
        # `batch` counts oddly under steps_per_execution; the optimizer counts every step.
        return int(self.model.optimizer.iterations.numpy())

    @property
    def counters(self) -> Counters:
        """What this rank has exchanged so far."""
        return self.member.counters if self.member else Counters()


def _neighbors(graph: str | nx.Graph, rank: int, size: int, degree: int, seed: int) -> list[int]:
    if isinstance(graph, str):
        graph = topologies.build(graph, size, degree=degree, seed=seed)
    topologies.validate(graph, size)
    return topologies.neighbors(graph, rank)


def _fingerprint(settings: dict[str, Any]) -> int:
    """64 bits that stand for the settings of a swarm."""
    text = json.dumps(settings, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
