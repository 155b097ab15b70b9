"""How many local steps a rank takes between two exchanges."""

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from swarm_tf.errors import UsageError

BUSY_SHARE = 0.1
"""Share of a rank's cores that its communication thread may keep busy, with `Auto`."""
_LAST = 15  # boundaries that count: an outlier changes nothing, a new load does soon
_MOST = 64


@dataclass(frozen=True)
class Cost:
    """What a rank has measured from one boundary to the next.

    Attributes:
      steps: local steps between the two.
      seconds: that these steps took.
      exposed_seconds: for which the second boundary stopped training.
      busy_seconds: CPU time of the communication thread since the first boundary.
    """

    steps: int
    seconds: float
    exposed_seconds: float
    busy_seconds: float


class LocalSteps(Protocol):
    """How H, the number of local steps before a boundary, is chosen."""

    def draw(self, rng: np.random.Generator) -> int:
        """Draws the next H, at least 1."""

    def observe(self, cost: Cost) -> None:
        """Learn from what a boundary has cost."""


@dataclass(frozen=True)
class Fixed:
    """H is always `steps`."""

    steps: int

    def __post_init__(self) -> None:
        _at_least_one(self.steps)

    def draw(self, rng: np.random.Generator) -> int:
        """Returns `steps`, without using `rng`."""
        return self.steps

    def observe(self, cost: Cost) -> None:
        """Changes nothing."""


@dataclass(frozen=True)
class Geometric:
    """H is geometric on 1, 2, 3, ... with the given mean, as in the paper's analysis."""

    mean: float

    def __post_init__(self) -> None:
        _at_least_one(self.mean)

    def draw(self, rng: np.random.Generator) -> int:
        """Draws H with P(H = h) = p (1 - p)^(h - 1), p = 1/mean."""
        return int(rng.geometric(1.0 / self.mean))

    def observe(self, cost: Cost) -> None:
        """Changes nothing."""


class Auto:
    """H is the fewest local steps that hide the averaging.

    The less often ranks average, the more a swarm loses per pass over the data; so they average as
    often as it costs training nearly nothing: a boundary may stop training for `exposed_target` of
    its time, and the communication thread may keep `BUSY_SHARE` of the rank's cores busy. (An
    exchange starts at a boundary only if the last one is over, so a slow link limits it too.)

    Of the last boundaries the shortest one counts: a longer one has waited for a core that other
    processes use, and as many of them would wait if they were fewer and longer.

    Args:
      exposed_target: share of the training time.
      cores: of this rank.
    """

    def __init__(self, exposed_target: float, cores: float) -> None:
        self._target, self._cores = exposed_target, cores
        self._costs: deque[Cost] = deque(maxlen=_LAST)

    def draw(self, rng: np.random.Generator) -> int:
        """The fewest steps that keep both limits, without using `rng`; 1 before any `observe`."""
        if not self._costs:
            return 1
        step = statistics.median(cost.seconds / cost.steps for cost in self._costs)
        exposed = min(cost.exposed_seconds for cost in self._costs)
        busy = statistics.median(cost.busy_seconds for cost in self._costs)
        needed = max(exposed / self._target, busy / (BUSY_SHARE * self._cores))
        return max(1, min(_MOST, math.ceil(needed / max(step, 1e-9))))

    def observe(self, cost: Cost) -> None:
        """Count what the last boundary has cost."""
        self._costs.append(cost)


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
