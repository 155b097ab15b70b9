"""Local SGD: after every H steps all ranks replace their models by the mean.

Stich 2019, arXiv 1805.09767; post-local SGD: Lin, Stich, Patel, Jaggi 2020, arXiv 1808.07217.

    x_i <- x_i - optimizer step                  on every rank
    x_i <- (x_1 + ... + x_N) / N                 every H steps; until `switch` in every step
"""

from dataclasses import dataclass, field

from swarm_tf import consensus
from swarm_tf.algorithm import Algorithm
from swarm_tf.errors import UsageError
from swarm_tf.options import Options, at_least, option, rule, with_options


@dataclass
class LocalSGDConfig(Options):
    """Options of local SGD."""

    local_steps: int = option(4, at_least(1), "H, local steps between two averagings")
    switch: float = option(
        0.0,
        rule("from 0 to 1", lambda value: 0 <= value <= 1),
        "first fraction of the run, in which every step is averaged (post-local SGD)",
    )


@with_options
class LocalSGD(LocalSGDConfig, Algorithm):
    """Averages all models every few steps.

    Args:
      steps: number of local steps in the run; required if `switch` is above 0.

    Raises:
      UsageError: an option has a value that its rule does not allow, or `steps` is missing.
    """

    name = "local_sgd"

    steps: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.switch and self.steps is None:
            raise UsageError(
                f"local_sgd.switch={self.switch} needs steps=, the number of local steps"
            )
        self.switch_step = round(self.switch * (self.steps or 0))

    def next_boundary(self, step: int) -> int:
        """Every step before the switch, then every H steps."""
        return step + 1 if step < self.switch_step else step + self.local_steps

    def boundary(self, step: int) -> None:
        """Replace the weights by the mean over all ranks."""
        with self.exposed():
            assert self.weights is not None
            assert self.transport is not None
            mean = consensus.mean(self.weights, self.transport, self.timeout_seconds)
            self.weights.assign(mean)
