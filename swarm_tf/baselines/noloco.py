"""NoLoCo: DiLoCo that averages in random pairs instead of an all-reduce.

Kolehmainen et al. 2025, arXiv 2506.10911. For rank i and its partner j in a round:

    theta_i <- H steps of the local optimizer from phi_i
    D_i     <- theta_i - phi_i
    m_i     <- alpha m_i + beta (D_i + D_j)/2 - gamma (phi_i - phi_j)/2
    phi_i   <- phi_i + m_i
"""

from dataclasses import dataclass

import numpy as np

from swarm_tf import consensus
from swarm_tf.baselines.outer import Outer, OuterConfig
from swarm_tf.options import POSITIVE, SHARE, option, with_options
from swarm_tf.transport import collectives


@dataclass
class NoLoCoConfig(OuterConfig):
    """Options of NoLoCo."""

    outer_momentum: float = option(0.5, SHARE, "momentum of the outer step, alpha")
    attraction: float = option(
        0.7, POSITIVE, "factor that pulls the slow weights of a pair together, gamma"
    )


@with_options
class NoLoCo(NoLoCoConfig, Outer):
    """Local steps on every rank, and an outer momentum step in every pair.

    All ranks draw the same random pairs. If their number is odd, one rank has no partner in a
    round.
    """

    name = "noloco"

    def partner(self, round: int) -> int | None:
        """This rank's partner in round `round`, counted from 1; None if it has none."""
        assert self.transport is not None
        rng = np.random.default_rng([self.seed, round])
        order = rng.permutation(self.transport.size).tolist()
        other = order.index(self.transport.rank) ^ 1
        return order[other] if other < len(order) else None

    def outer_step(self, fast: consensus.Chunks) -> None:
        """Move `slow` by the mean change of the pair, and towards the partner's `slow`."""
        beta = np.float32(self.outer_learning_rate)
        alpha = np.float32(self.outer_momentum)
        gamma = np.float32(self.attraction)
        theirs = self._sendrecv([*self.slow, *fast])
        their_slow, their_fast = theirs[: len(fast)], theirs[len(fast) :]
        chunks = zip(self.slow, their_slow, fast, their_fast, self.momentum, strict=True)
        for phi, their_phi, theta, their_theta, momentum in chunks:
            momentum *= alpha
            momentum += beta * ((theta - phi) + (their_theta - their_phi)) / 2
            momentum -= gamma * (phi - their_phi) / 2
            phi += momentum

    def average(self, chunks: consensus.Chunks) -> None:
        """Average `chunks` with the partner of the round."""
        for own, theirs in zip(chunks, self._sendrecv(chunks), strict=True):
            own += theirs
            own /= 2

    def _sendrecv(self, chunks: consensus.Chunks) -> consensus.Chunks:
        """The partner's `chunks`; a copy of this rank's own if it has no partner."""
        partner = self.partner(self.round)
        if partner is None:
            return [chunk.copy() for chunk in chunks]
        assert self.transport is not None
        theirs = [np.empty_like(chunk) for chunk in chunks]
        pairs = enumerate(zip(chunks, theirs, strict=True))
        collectives.run(
            [
                collectives.sendrecv(
                    self.transport, {partner: own}, {partner: into}, tag, self.timeout_seconds
                )
                for tag, (own, into) in pairs
            ]
        )
        return theirs
