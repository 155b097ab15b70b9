"""Policies by which a rank chooses the neighbour of its next exchange.

Each rank chooses independently, so no rank waits for a common round.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class PartnerPolicy(Protocol):
    """How one rank chooses its partners; each rank has its own instance."""

    def choose(self, candidates: Sequence[int]) -> int:
        """The rank to request an exchange from.

        With mode="blocking" it is called again when the chosen rank is busy.

        Args:
          candidates: at least one rank, in ascending order: the neighbours that have not left the
            swarm and have answered all earlier requests. If all have left, all neighbours: the
            exchange then fails and the log says why.
        """


class Uniform:
    """A neighbour drawn uniformly at random, as in the paper's Algorithm 1."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, candidates: Sequence[int]) -> int:
        """See `PartnerPolicy`."""
        return candidates[int(self._rng.integers(len(candidates)))]


POLICIES: dict[str, Callable[[np.random.Generator], PartnerPolicy]] = {"uniform": Uniform}
"""Name, as in `swarm.partner_policy` -> constructor of the policy from the rank's generator."""
