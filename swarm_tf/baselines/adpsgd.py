"""AD-PSGD: every rank averages with a random neighbour in each step, and waits for nobody.

Lian, Zhang, Zhang, Liu 2018, arXiv 1710.06952, algorithm 1.

    g_i        <- gradient at x_i            meanwhile x_i may be averaged with others
    x_i, x_j   <- (x_i + x_j)/2              j a random neighbour
    x_i        <- x_i - rate g_i

This is a swarm with one local step between exchanges, in full precision: models are averaged as
they were when the step began, and the step is added. (The paper's bipartite graph avoids a
deadlock that the exchange here does not know.)
"""

from dataclasses import dataclass, field

from swarm_tf.options import at_least, option, with_options
from swarm_tf.swarmsgd import SwarmCallback
from swarm_tf.topology import GraphOptions


@dataclass
class ADPSGDConfig(GraphOptions):
    """AD-PSGD."""

    max_staleness: int | None = option(
        4,
        at_least(1),
        "local steps that training goes on during an unanswered exchange, then it waits; the "
        "paper's T; None: 4",
    )


@with_options
class ADPSGD(ADPSGDConfig, SwarmCallback):
    """Asynchronous pairwise averaging after every step."""

    name = "adpsgd"

    local_steps: int = field(default=1, init=False)
    codec: str = field(default="float32", init=False)
    bits: int = field(default=8, init=False)  # of no effect on float32
    mode: str = field(default="nonblocking", init=False)
    local_steps_distribution: str = field(default="fixed", init=False)
    partner_policy: str = field(default="uniform", init=False)
