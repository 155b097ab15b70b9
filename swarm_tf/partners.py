"""Whom a rank requests its next exchange from, by a policy of the table `PARTNERS`.

Each rank chooses on its own, so that nobody waits for a common round.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class Partners(Protocol):
    """A policy, as one rank follows it."""

    def choose(self, available: Sequence[int]) -> int:
        """The rank to request the next exchange from.

        Args:
          available: neighbours that can be reached now, at least one, in rising order.
        """


class Uniform:
    """A neighbour drawn uniformly at random, as in the paper's Algorithm 1."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, available: Sequence[int]) -> int:
        """See `Partners`."""
        return available[int(self._rng.integers(len(available)))]


PARTNERS: dict[str, Callable[[np.random.Generator], Partners]] = {"uniform": Uniform}
"""Name, as in `swarm.partners` -> the policy of a rank, made from the rank's random numbers."""
