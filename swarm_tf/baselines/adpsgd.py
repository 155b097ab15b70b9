"""AD-PSGD: every rank averages with a random neighbour in each step, and waits for nobody.

Lian, Zhang, Zhang, Liu 2018, arXiv 1710.06952, algorithm 1.

    g_i        <- gradient at x_i            meanwhile x_i may be averaged with others
    x_i, x_j   <- (x_i + x_j)/2              j a random neighbour
    x_i        <- x_i - rate g_i

This is a swarm with one local step between exchanges, in full precision: models are averaged as
they were when the step began, and the step is added. (The paper's bipartite graph avoids a
deadlock that the exchange here does not know.)
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from swarm_tf.swarmsgd import SwarmCallback


class ADPSGD(SwarmCallback):
    """Asynchronous pairwise averaging after every step.

    Args:
      topology: a name of `topology.TOPOLOGIES`, or any connected `networkx.Graph` on the ranks.
      degree: of the topology "random_regular".
      max_staleness: local steps past an unanswered exchange, then it waits; the paper's T.
      common: see `Algorithm`.
    """

    name = "adpsgd"

    def __init__(
        self,
        topology: str | nx.Graph = "complete",
        *,
        degree: int = 4,
        max_staleness: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(
            1,
            codec="float32",
            topology=topology,
            degree=degree,
            max_staleness=max_staleness,
            **common,
        )
