"""How many local steps a rank takes between two exchanges."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from swarm_tf.errors import UsageError


class LocalSteps(Protocol):
    """A law of H, the number of local steps before an exchange."""

    def draw(self, rng: np.random.Generator) -> int:
        """The next H, at least 1."""


@dataclass(frozen=True)
class Fixed:
    """Always `steps`."""

    steps: int

    def __post_init__(self) -> None:
        _at_least_one(self.steps)

    def draw(self, rng: np.random.Generator) -> int:
        """`steps`; `rng` stays as it is."""
        return self.steps


@dataclass(frozen=True)
class Geometric:
    """Geometric on 1, 2, 3, ... with the given mean, as in the paper's analysis."""

    mean: float

    def __post_init__(self) -> None:
        _at_least_one(self.mean)

    def draw(self, rng: np.random.Generator) -> int:
        """P(H = h) = p (1 - p)^(h - 1) with p = 1/mean."""
        return int(rng.geometric(1.0 / self.mean))


DISTRIBUTIONS: dict[str, Callable[[int], LocalSteps]] = {"fixed": Fixed, "geometric": Geometric}
"""Name -> the law with so many local steps on average."""


def build(distribution: str, steps: int) -> LocalSteps:
    """The law named by `swarm.local_steps_distribution`, with mean `swarm.local_steps`.

    Raises:
      UsageError: for an unknown distribution, or steps below 1.
    """
    if distribution not in DISTRIBUTIONS:
        raise UsageError(
            f"swarm.local_steps_distribution={distribution} is unknown; "
            f"use one of {', '.join(DISTRIBUTIONS)}"
        )
    return DISTRIBUTIONS[distribution](steps)


def _at_least_one(steps: float) -> None:
    # `not >=` instead of `<`: it refuses NaN too.
    if not steps >= 1:
        raise UsageError(f"swarm.local_steps={steps} must be at least 1")
