"""The sequential recipe: one rank that trains alone.

x <- x - optimizer step
"""

from dataclasses import dataclass
from typing import Any

from swarm_tf.algorithm import Algorithm
from swarm_tf.errors import UsageError
from swarm_tf.options import Options, with_options


@dataclass(kw_only=True)
class SingleConfig(Options):
    """One rank alone, the sequential recipe."""

    def check(self, name: str, *, ranks: int, seed: int, common: Any) -> None:
        """See `Options`; and there must be one rank."""
        super().check(name, ranks=ranks, seed=seed, common=common)
        if ranks > 1:
            raise UsageError(
                f"algorithm={name} trains on one rank, but this run has {ranks}; "
                "start one rank or use algorithm=swarm"
            )


@with_options
class Single(SingleConfig, Algorithm):
    """Training on one rank, without averaging."""

    name = "single"
    synchronous = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """There are no other ranks to join."""
