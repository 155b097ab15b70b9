"""How many local steps a rank takes between two exchanges."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from swarm_tf.errors import UsageError


class LocalSteps(Protocol):
    """A probability distribution of H, the number of local steps before an exchange."""

    def draw(self, rng: np.random.Generator) -> int:
        """Draws the next H, at least 1."""


@dataclass(frozen=True)
class Fixed:
    """H is always `steps`."""

    steps: int

    def __post_init__(self) -> None:
        _at_least_one(self.steps)

    def draw(self, rng: np.random.Generator) -> int:
        """Returns `steps`, without using `rng`."""
        return self.steps


@dataclass(frozen=True)
class Geometric:
    """H is geometric on 1, 2, 3, ... with the given mean, as in the paper's analysis."""

    mean: float

    def __post_init__(self) -> None:
        _at_least_one(self.mean)

    def draw(self, rng: np.random.Generator) -> int:
        """Draws H with P(H = h) = p (1 - p)^(h - 1), p = 1/mean."""
        return int(rng.geometric(1.0 / self.mean))


DISTRIBUTIONS: dict[str, Callable[[int], LocalSteps]] = {"fixed": Fixed, "geometric": Geometric}
"""Name -> function from the mean number of local steps to the distribution."""


def build(distribution: str, steps: int) -> LocalSteps:
    """The distribution named `distribution` with mean `steps`.

    Raises:
      UsageError: if the distribution is unknown or `steps` is below 1.
    """
    if distribution not in DISTRIBUTIONS:
        raise UsageError(
            f"swarm.local_steps_distribution={distribution} is unknown; "
            f"use one of {', '.join(DISTRIBUTIONS)}"
        )
    return DISTRIBUTIONS[distribution](steps)


def _at_least_one(steps: float) -> None:
    # `not >=` is also true for NaN, unlike `<`.
    if not steps >= 1:
        raise UsageError(f"swarm.local_steps={steps} must be at least 1")
