"""Slow weights, which an outer optimizer moves by what the fast ones did in many local steps."""

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
        32, at_least(1), "local steps between two outer steps, H; 500 and 50 in the papers"
    )
    outer_learning_rate: float = option(0.7, POSITIVE, "of the outer step")

    def check(self, name: str, *, ranks: int, seed: int, common: Any) -> None:
        """See `Options`; and the local optimizer's slots stay where they are."""
        super().check(name, ranks=ranks, seed=seed, common=common)
        if common.average_optimizer:
            raise UsageError(
                f"swarm.average_optimizer=True has no effect on algorithm={name}; leave it at False"
            )


@with_options
class Outer(OuterConfig, Algorithm, ABC):
    """An algorithm with an outer optimizer.

    Moving statistics of BatchNormalization are averaged as they are: momentum could make a
    variance negative.

    Attributes:
      slow: weights that the next local steps start from, in chunks.
      momentum: of the outer optimizer, in chunks.
      round: outer steps so far, the current one included.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.slow: consensus.Chunks = []
        self.momentum: consensus.Chunks = []
        self.round = 0

    @abstractmethod
    def outer_step(self, fast: consensus.Chunks) -> None:
        """Move `slow` and `momentum`, given where the local steps from `slow` have led."""

    def average(self, chunks: consensus.Chunks) -> None:
        """Overwrite `chunks` with their mean over those who take the outer step together."""
        assert self.transport is not None
        collectives.average(self.transport, chunks, self.timeout_seconds)

    def next_boundary(self, step: int) -> int:
        """Every H steps."""
        return step + self.local_steps

    def begin(self, common: dict[str, Any]) -> None:
        """The slow weights are the ones that all ranks begin with."""
        self._trained = FlatWeights(self.model.trainable_variables)
        statistics = self.average_statistics
        self._statistics = FlatWeights(moving_statistics(self.model) if statistics else [])
        self.slow = consensus.copy(self._trained)
        self.momentum = [np.zeros_like(chunk) for chunk in self.slow]
        self.round = 0

    def boundary(self, step: int) -> None:
        """Take an outer step; the next local steps start from its end."""
        with self.exposed():
            self.round += 1
            self.outer_step(consensus.copy(self._trained))
            self._trained.assign(self.slow)
            if self._statistics.variables:
                statistics = consensus.copy(self._statistics)
                self.average(statistics)
                self._statistics.assign(statistics)
