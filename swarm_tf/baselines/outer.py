"""Base of algorithms with an outer optimizer: it updates slow weights after many local steps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from swarm_tf import consensus
from swarm_tf.algorithm import Algorithm
from swarm_tf.errors import UsageError
from swarm_tf.options import POSITIVE, Options, at_least, option, with_options
from swarm_tf.state import moving_statistics
from swarm_tf.transport import collectives
from swarm_tf.weights import FlatWeights


@dataclass
class OuterConfig(Options):
    """Options of an algorithm with an outer optimizer."""

    local_steps: int = option(
        32, at_least(1), "H, local steps between two outer steps; 500 (DiLoCo) and 50 (NoLoCo)"
    )
    outer_learning_rate: float = option(0.7, POSITIVE, "learning rate of the outer step")

    def check(self, name: str, *, ranks: int, seed: int, common: Any) -> None:
        """See `Options`; average_optimizer must be False, since optimizer slots stay local."""
        super().check(name, ranks=ranks, seed=seed, common=common)
        if common.average_optimizer:
            raise UsageError(
                f"swarm.average_optimizer=True has no effect on algorithm={name}; leave it at False"
            )


@with_options
class Outer(OuterConfig, Algorithm, ABC):
    """An algorithm with an outer optimizer.

    Moving statistics of BatchNormalization are averaged without the outer optimizer: its momentum
    could make a variance negative.

    Attributes:
      slow: the weights from which the next local steps start, in chunks.
      momentum: the momentum of the outer optimizer, in chunks.
      round: number of outer steps so far, including the current one.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.slow: consensus.Chunks = []
        self.momentum: consensus.Chunks = []
        self.round = 0

    @abstractmethod
    def outer_step(self, fast: consensus.Chunks) -> None:
        """Update `slow` and `momentum`; `fast` are the weights after the local steps."""

    def average(self, chunks: consensus.Chunks) -> None:
        """Overwrite `chunks` with their mean over the ranks that take the outer step together."""
        assert self.transport is not None
        collectives.average(self.transport, chunks, self.timeout_seconds)

    def next_boundary(self, step: int) -> int:
        """Every H steps."""
        return step + self.local_steps

    def begin(self, common: dict[str, Any]) -> None:
        """Set the slow weights to the initial weights, which are equal on all ranks."""
        self._trained = FlatWeights(self.model.trainable_variables)
        statistics = self.average_statistics
        self._statistics = FlatWeights(moving_statistics(self.model) if statistics else [])
        self.slow = consensus.copy(self._trained)
        self.momentum = [np.zeros_like(chunk) for chunk in self.slow]
        self.round = 0
        if self.resumed is not None:
            self.slow, self.momentum = list(self.resumed["slow"]), list(self.resumed["momentum"])
            self.round = self.resumed["round"]

    def state(self) -> dict[str, Any]:
        """See `Algorithm`."""
        kept = {"slow": self.slow, "momentum": self.momentum}
        copied = {name: [chunk.copy() for chunk in chunks] for name, chunks in kept.items()}
        return {**super().state(), **copied, "round": self.round}

    def boundary(self, step: int) -> None:
        """Take an outer step; the next local steps start from its result."""
        with self.exposed():
            self.round += 1
            self.outer_step(consensus.copy(self._trained))
            self._trained.assign(self.slow)
            if self._statistics.variables:
                statistics = consensus.copy(self._statistics)
                self.average(statistics)
                self._statistics.assign(statistics)
