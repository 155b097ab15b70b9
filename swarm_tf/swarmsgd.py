"""SwarmSGD as a Keras callback: each rank trains its own model and averages it in pairs.

Nadiradze, Sabour, Davies, Li, Alistarh: "Asynchronous Decentralized SGD with Quantized and Local
Updates", NeurIPS 2021, arXiv 1910.12308. There are n nodes on a connected graph; their models x_i
are equal at the start. Node i repeats Algorithm 1:

    H local steps          x_i <- x_i - rate * gradient on node i's data, H times
    partner                j   <- one of i's neighbours, uniformly at random
    average                x_i, x_j <- (x_i + x_j) / 2

This is mode="blocking". With mode="nonblocking", the default, other nodes average with a replica
y_i while x_i continues to train; the result is added to x_i at its next boundary as a correction
c_i, which is 0 at the start:

    boundary of i          x_i <- x_i + c_i;   c_i <- 0;   y_i <- x_i
    exchange of i and j    c_i <- c_i + d/2;   c_j <- c_j - d/2       where d = Q(y_j) - Q(y_i)
                           y_i <- y_i + d/2;   y_j <- y_j - d/2

Q rounds to a lattice that both nodes share, so the two corrections are exact opposites and only
local steps change the mean of all models. With mode="pull" only node i changes.

`SwarmCallback` decides when a rank requests an exchange (`should_exchange`), and from which
neighbour (`choose_partner`). `swarm_tf.member` implements the boundary, `swarm_tf.protocol` the
exchange, `swarm_tf.codec` Q. docs/algorithm.md maps each symbol to the code;
examples/swarmsgd_in_numpy.py is the whole algorithm in NumPy.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swarm_tf import codec as codecs
from swarm_tf import local_steps as distributions
from swarm_tf import state, topology
from swarm_tf.algorithm import Algorithm, AlgorithmConfig
from swarm_tf.cluster import devices
from swarm_tf.errors import UsageError
from swarm_tf.events import Counters, ExchangeEnded
from swarm_tf.local_steps import Auto, Cost, LocalSteps
from swarm_tf.member import Member
from swarm_tf.options import AUTO, WholeOrAuto, at_least, one_of, option, rule, with_options
from swarm_tf.partners import POLICIES
from swarm_tf.protocol.messages import Reason
from swarm_tf.protocol.node import MODES
from swarm_tf.topology import GraphOptions


@dataclass
class SwarmConfig(GraphOptions, AlgorithmConfig):
    """How often, with which ranks and in which format models are averaged."""

    local_steps: WholeOrAuto = option(
        4,
        rule("1 or more, or auto", lambda value: value == AUTO or value >= 1),
        "H, local steps (batches) between two exchanges that a rank requests; auto: the fewest "
        "that training hides",
    )
    bits: int = option(8, one_of(codecs.BITS), "bits per weight on the wire, for codec=lattice")
    mode: str = option(
        "nonblocking",
        one_of(MODES),
        "during an exchange, training continues (nonblocking) or waits (blocking); pull: as "
        "nonblocking, but only the rank that requests an exchange changes its model",
    )
    codec: str = option("lattice", one_of(codecs.CODECS), "format of the weights in messages")
    local_steps_distribution: str = option(
        "fixed",
        one_of(distributions.DISTRIBUTIONS),
        "fixed: H = local_steps; geometric: random H with that mean",
    )
    partner_policy: str = option(
        "uniform", one_of(POLICIES), "how a rank chooses the neighbour of its next exchange"
    )
    max_staleness: int | None = option(
        None,
        at_least(1),
        "local steps after which an unanswered exchange is late: one with another neighbour then "
        "starts beside it; None: four times as many as exchanges usually take, at least 16",
    )
    exposed_target: float = option(
        0.01,
        rule("above 0 and at most 1", lambda value: 0 < value <= 1),
        "for local_steps=auto: share of the training time for which averaging may stop training, "
        "not counting the time that it waits for a core",
        agreed=False,
        may_change=True,
    )

    def check(self, name: str, *, ranks: int, seed: int, common: Any) -> None:
        """See `Options`; also checks combinations with local_steps."""
        super().check(name, ranks=ranks, seed=seed, common=common)
        if not isinstance(self.local_steps, int):
            for key, value in (("mode", "blocking"), ("local_steps_distribution", "geometric")):
                if getattr(self, key) == value:
                    raise UsageError(
                        f"{name}.local_steps=auto cannot be combined with {name}.{key}={value}; "
                        "give a number of steps, such as 4"
                    )
            return
        # With mode=blocking no step is taken during an exchange, so max_staleness has no effect.
        if self.mode == "blocking" or self.max_staleness is None:
            return
        if self.max_staleness < self.local_steps:
            raise UsageError(
                f"{name}.max_staleness={self.max_staleness} must be at least {name}.local_steps="
                f"{self.local_steps}; to stop training during exchanges set {name}.mode=blocking"
            )


@with_options
class SwarmCallback(SwarmConfig, Algorithm):
    """Trains a Keras model with SwarmSGD (arXiv 1910.12308) over all ranks of an MPI job.

    Every rank trains its own copy of the model on its own part of the data. After every few local
    steps it averages a quantized copy with a random neighbour, while training continues.

    ```python
    data = data.shard(swarm_tf.size(), swarm_tf.rank())
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    model.fit(data, epochs=10, callbacks=[swarm_tf.SwarmCallback(local_steps=4, bits=8)])
    ```

    All ranks start from rank 0's weights. On one rank (no launcher) it does nothing and logs that.
    Subclasses may override `should_exchange`, `choose_partner` and `on_exchange_end`.

    Args:
      record: a directory to which each rank writes what every exchange did, to be checked by
        `python -m swarm_tf.history`; slow.

    Raises:
      UsageError: an option has a value that its rule does not allow.
    """

    name = "swarm"
    synchronous = False

    record: str | os.PathLike[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.member: Member | None = None
        self._codec = codecs.build(self.codec, self.bits)
        self._steps: LocalSteps
        if isinstance(self.local_steps, int):
            self._steps = distributions.build(self.local_steps_distribution, self.local_steps)
        else:
            self._steps = Auto(self.exposed_target, devices.cores())
        rank = 0
        self.neighbors: list[int] = []
        if self.transport is not None:
            rank = self.transport.rank
            self.neighbors = topology.neighbors(self.graph(self.transport.size, self.seed), rank)
        self._rng = np.random.default_rng([self.seed, rank, 2])
        self._policy = POLICIES[self.partner_policy](self._rng)
        self._next_exchange_step = 0
        self._last_boundary: tuple[int, float, float] | None = None  # step, end, busy seconds

    def next_boundary(self, step: int) -> int:
        """The first local step after `step` at which `should_exchange` must be called."""
        if type(self).should_exchange is not SwarmCallback.should_exchange:
            return step + 1
        return max(self._next_exchange_step, step + 1)

    # The methods that subclasses may override.

    def should_exchange(self, step: int) -> bool:
        """Whether this rank requests an exchange after local step `step` (counted from 1)."""
        if step < self._next_exchange_step:
            return False
        self._next_exchange_step = step + self._steps.draw(self._rng)
        return True

    def choose_partner(self, neighbors: list[int], rng: np.random.Generator) -> int:
        """Chooses the rank to request an exchange from; by default the `partner_policy` does.

        Args:
          neighbors: those that can be requested now; see `PartnerPolicy.choose`. For any other
            neighbour, which owes an answer, no exchange starts.
          rng: this rank's random number generator.
        """
        return self._policy.choose(neighbors)

    def on_exchange_end(self, exchange: ExchangeEnded) -> None:
        """Called at the next boundary for each exchange that this rank requested, failed or not.

        It is not called for exchanges that other ranks requested, nor for requests that a busy
        partner refused or that crossed a request of the partner to this rank.
        """

    # The implementation of `Algorithm`.

    def begin(self, common: dict[str, Any]) -> None:
        """Join the swarm."""
        assert self.transport is not None
        assert self.weights is not None
        self._last_boundary = None
        self.member = Member(
            self.weights,
            self.transport,
            self._codec,
            self.mode,
            neighbors=self.neighbors,
            max_staleness=self.max_staleness,
            seed=self.seed,
            timeout_seconds=self.timeout_seconds,
            fingerprint=_fingerprint(common),
            on_adopt=self._reset_local_state,
            record=self.record,
        )
        averaged = {id(v) for v in self.weights.variables}
        own = [v for v in state.moving_statistics(self.model) if id(v) not in averaged]
        self._own_statistics = [(v, np.array(v)) for v in own]
        saved = self.resumed
        if saved is not None and saved["member"] is not None:
            self.member.restore(saved["member"], own=saved["own"])
        self.member.start()
        if saved is not None and saved["own"]:
            self._rng.bit_generator.state = saved["rng"]
            self._next_exchange_step = saved["next_exchange_step"]
        else:
            self._next_exchange_step = self.local_step() + self._steps.draw(self._rng)

    def state(self) -> dict[str, Any]:
        """See `Algorithm`; a `PartnerPolicy` has no state but the generator of random numbers."""
        return {
            **super().state(),
            "rng": self._rng.bit_generator.state,
            "next_exchange_step": self._next_exchange_step,
            "member": None if self.member is None else self.member.state(),
        }

    def boundary(self, step: int) -> None:
        """Exchange, if `should_exchange` returns True."""
        assert self.member is not None
        if self.should_exchange(step):
            began = time.perf_counter()
            ended = self.member.boundary(step, self._choose)
            self._observe(step, began)
            for exchange in ended:
                self.on_exchange_end(exchange)

    def _observe(self, step: int, began: float) -> None:
        """Let `local_steps=auto` know what the boundary that `began` has cost."""
        assert self.member is not None
        now, busy = time.perf_counter(), self.member.busy_seconds
        if self._last_boundary is not None:
            last_step, ended, busy_before = self._last_boundary
            self._steps.observe(
                Cost(step - last_step, began - ended, now - began, busy - busy_before)
            )
        self._last_boundary = step, now, busy

    def _choose(self, candidates: list[int]) -> int:
        partner = self.choose_partner(candidates, self._rng)
        if partner not in self.neighbors:
            raise UsageError(
                f"choose_partner returned {partner!r}; it must be one of this rank's neighbours: "
                f"{', '.join(map(str, self.neighbors))}"
            )
        return int(partner)

    def end(self, step: int) -> None:
        """Serve requests until all ranks have finished training."""
        assert self.member is not None
        for exchange in self.member.finish(step, lambda: super(SwarmCallback, self).stop_requested):
            self.on_exchange_end(exchange)

    def abandon(self, *, exits: bool = False) -> None:
        """Notify the other ranks: they end if this program exits, otherwise they continue."""
        if self.member is not None:
            self.member.leave_swarm(Reason.LEFT if exits else Reason.FAILED)

    def _reset_local_state(self) -> None:
        """After a neighbour's model was taken: reset the state that is not averaged."""
        state.reset_slots(self.model)
        for variable, at_start in self._own_statistics:
            if not np.isfinite(np.asarray(variable)).all():
                variable.assign(at_start)

    @property
    def stop_requested(self) -> bool:
        """Whether a signal to this rank, or to another one that reported it, ends the training."""
        return super().stop_requested or (self.member is not None and self.member.stop_requested)

    @property
    def counters(self) -> Counters:
        """Counts of this rank's exchanges and bytes so far."""
        return self.member.counters if self.member else Counters()


def _fingerprint(settings: dict[str, Any]) -> int:
    """A 64-bit hash of the settings; messages carry it."""
    text = json.dumps(settings, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
