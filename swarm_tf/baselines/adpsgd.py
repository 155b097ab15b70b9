"""AD-PSGD: every rank averages with a random neighbour in each step, without waiting for it.

Lian, Zhang, Zhang, Liu 2018, arXiv 1710.06952, algorithm 1.

    g_i        <- gradient at x_i            x_i may be averaged with others at the same time
    x_i, x_j   <- (x_i + x_j)/2              j is a random neighbour
    x_i        <- x_i - rate g_i

This is SwarmSGD with one local step between exchanges and float32 weights: the models are averaged
as they were when the step began, and the step is added to the mean. The paper needs a bipartite
graph to avoid a deadlock; this exchange cannot deadlock, so any connected graph works.
"""

from dataclasses import dataclass, field

from swarm_tf.options import at_least, option, with_options
from swarm_tf.swarmsgd import SwarmCallback
from swarm_tf.topology import GraphOptions


@dataclass
class ADPSGDConfig(GraphOptions):
    """Options of AD-PSGD."""

    max_staleness: int | None = option(
        4,
        at_least(1),
        "local steps after which an unanswered exchange is late: one with another neighbour then "
        "starts beside it; None: four times as many as exchanges usually take, at least 16",
    )


@with_options
class ADPSGD(ADPSGDConfig, SwarmCallback):
    """Asynchronous pairwise averaging after every step."""

    name = "adpsgd"

    local_steps: int = field(default=1, init=False)
    codec: str = field(default="float32", init=False)
    bits: int = field(default=8, init=False)  # has no effect on codec=float32
    mode: str = field(default="nonblocking", init=False)
    local_steps_distribution: str = field(default="fixed", init=False)
    partner_policy: str = field(default="uniform", init=False)
