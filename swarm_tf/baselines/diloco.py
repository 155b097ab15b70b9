"""DiLoCo: many local steps, then one step of Nesterov momentum on the mean difference.

Douillard et al. 2023, arXiv 2311.08105.

    theta_i <- H steps of the local optimizer from theta
    d       <- mean over ranks of theta - theta_i          the outer gradient
    m       <- mu m + d
    theta   <- theta - eta (mu m + d)                      Nesterov
"""

from __future__ import annotations

from typing import Any

import numpy as np

from swarm_tf import consensus
from swarm_tf.baselines.outer import Outer


class DiLoCo(Outer):
    """Local steps on every rank, an outer Nesterov optimizer on all together.

    Args:
      local_steps: between two outer steps, H; 500 in the paper.
      outer_learning_rate: eta.
      outer_momentum: mu.
      common: see `Algorithm`.
    """

    name = "diloco"

    def __init__(
        self,
        local_steps: int = 32,
        *,
        outer_learning_rate: float = 0.7,
        outer_momentum: float = 0.9,
        **common: Any,
    ) -> None:
        super().__init__(local_steps, **common)
        self.settings |= {
            "outer_learning_rate": outer_learning_rate,
            "outer_momentum": outer_momentum,
        }

    def outer_step(self, fast: consensus.Chunks) -> None:
        """`slow` moves by the mean of what all ranks have moved."""
        eta, mu = (
            np.float32(self.settings[f"outer_{key}"]) for key in ("learning_rate", "momentum")
        )
        differences = [slow - chunk for slow, chunk in zip(self.slow, fast, strict=True)]
        self.average(differences)
        for slow, momentum, d in zip(self.slow, self.momentum, differences, strict=True):
            momentum *= mu
            momentum += d
            slow -= eta * (mu * momentum + d)
