"""DiLoCo: many local steps, then one Nesterov step on the mean change of the models.

Douillard et al. 2023, arXiv 2311.08105.

    theta_i <- H steps of the local optimizer from theta
    d       <- mean over ranks of theta - theta_i          the outer gradient
    m       <- mu m + d
    theta   <- theta - eta (mu m + d)                      Nesterov
"""

from dataclasses import dataclass

import numpy as np

from swarm_tf import consensus
from swarm_tf.baselines.outer import Outer, OuterConfig
from swarm_tf.options import SHARE, option, with_options


@dataclass
class DiLoCoConfig(OuterConfig):
    """Options of DiLoCo."""

    outer_momentum: float = option(0.9, SHARE, "momentum of the outer step, mu")


@with_options
class DiLoCo(DiLoCoConfig, Outer):
    """Local steps on every rank, and an outer Nesterov optimizer on the mean of all ranks."""

    name = "diloco"

    def outer_step(self, fast: consensus.Chunks) -> None:
        """Move `slow` by a Nesterov step on the mean change of all ranks."""
        eta, mu = np.float32(self.outer_learning_rate), np.float32(self.outer_momentum)
        differences = [slow - chunk for slow, chunk in zip(self.slow, fast, strict=True)]
        self.average(differences)
        for slow, momentum, d in zip(self.slow, self.momentum, differences, strict=True):
            momentum *= mu
            momentum += d
            slow -= eta * (mu * momentum + d)
