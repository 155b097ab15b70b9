"""NoLoCo: DiLoCo in random pairs, without any all-reduce.

Kolehmainen et al. 2025, arXiv 2506.10911. For rank i and its partner j of the round:

    theta_i <- H steps of the local optimizer from phi_i
    D_i     <- theta_i - phi_i
    m_i     <- alpha m_i + beta (D_i + D_j)/2 - gamma (phi_i - phi_j)/2
    phi_i   <- phi_i + m_i
"""

from __future__ import annotations

from typing import Any

import numpy as np

from swarm_tf import consensus
from swarm_tf.baselines.outer import Outer
from swarm_tf.transport import collectives


class NoLoCo(Outer):
    """Local steps on every rank, an outer momentum step in every pair.

    All ranks draw the same random pairs; of an odd number one stays alone in each round.

    Args:
      local_steps: between two outer steps, H; 50 in the paper.
      outer_learning_rate: beta.
      outer_momentum: alpha.
      attraction: gamma, with which the slow weights of a pair approach each other.
      common: see `Algorithm`.
    """

    name = "noloco"

    def __init__(
        self,
        local_steps: int = 32,
        *,
        outer_learning_rate: float = 0.7,
        outer_momentum: float = 0.5,
        attraction: float = 0.7,
        **common: Any,
    ) -> None:
        super().__init__(local_steps, **common)
        self.settings |= {
            "outer_learning_rate": outer_learning_rate,
            "outer_momentum": outer_momentum,
            "attraction": attraction,
        }

    def partner(self, round: int) -> int | None:
        """Of this rank in a round counted from 1; None where it stays alone."""
        assert self.transport is not None
        rng = np.random.default_rng([self.settings["seed"], round])
        order = rng.permutation(self.transport.size).tolist()
        other = order.index(self.transport.rank) ^ 1
        return order[other] if other < len(order) else None

    def outer_step(self, fast: consensus.Chunks) -> None:
        """`slow` moves by the pair's mean of what it has moved, and towards the partner's."""
        settings = self.settings
        beta = np.float32(settings["outer_learning_rate"])
        alpha = np.float32(settings["outer_momentum"])
        gamma = np.float32(settings["attraction"])
        theirs = self._sendrecv([*self.slow, *fast])
        their_slow, their_fast = theirs[: len(fast)], theirs[len(fast) :]
        every = zip(self.slow, their_slow, fast, their_fast, self.momentum, strict=True)
        for phi, their_phi, theta, their_theta, momentum in every:
            momentum *= alpha
            momentum += beta * ((theta - phi) + (their_theta - their_phi)) / 2
            momentum -= gamma * (phi - their_phi) / 2
            phi += momentum

    def average(self, chunks: consensus.Chunks) -> None:
        """With the partner of the round."""
        for own, theirs in zip(chunks, self._sendrecv(chunks), strict=True):
            own += theirs
            own /= 2

    def _sendrecv(self, chunks: consensus.Chunks) -> consensus.Chunks:
        """The `chunks` of the round's partner; without a partner one's own."""
        partner = self.partner(self.round)
        if partner is None:
            return [chunk.copy() for chunk in chunks]
        assert self.transport is not None
        theirs = [np.empty_like(chunk) for chunk in chunks]
        every = enumerate(zip(chunks, theirs, strict=True))
        collectives.run(
            [
                collectives.sendrecv(
                    self.transport, {partner: a}, {partner: b}, tag, self.timeout_seconds
                )
                for tag, (a, b) in every
            ]
        )
        return theirs
