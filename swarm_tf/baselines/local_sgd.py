"""Local SGD: every H steps all ranks take the mean of their models.

Stich 2019, arXiv 1805.09767; post-local SGD: Lin, Stich, Patel, Jaggi 2020, arXiv 1808.07217.

    x_i <- x_i - optimizer step                  on every rank
    x_i <- (x_1 + ... + x_N) / N                 every H steps; every step before the switch
"""

from __future__ import annotations

from typing import Any

from swarm_tf import consensus, validation
from swarm_tf.algorithm import Algorithm


class LocalSGD(Algorithm):
    """Averages all models every few steps.

    Args:
      local_steps: between two averagings, H.
      switch_step: until this local step H is 1, as in post-local SGD.
      common: see `Algorithm`.
    """

    name = "local_sgd"

    def __init__(self, local_steps: int = 4, *, switch_step: int = 0, **common: Any) -> None:
        super().__init__(**common)
        whole = validation.whole_number
        self.local_steps = whole("local_sgd.local_steps", local_steps)
        self.switch_step = whole("local_sgd.switch_step", switch_step)
        self.settings |= {"local_steps": self.local_steps, "switch_step": self.switch_step}

    def next_boundary(self, step: int) -> int:
        """Every step until the switch, then every H."""
        return step + 1 if step < self.switch_step else step + self.local_steps

    def boundary(self, step: int) -> None:
        """Take the mean."""
        with self.exposed():
            assert self.weights is not None
            assert self.transport is not None
            mean = consensus.mean(self.weights, self.transport, self.timeout_seconds)
            self.weights.assign(mean)
