"""The algorithm that a configuration names."""

from __future__ import annotations

import importlib

from swarm_tf.algorithm import Algorithm
from swarm_tf.config import ALGORITHMS, RunConfig


def build(config: RunConfig, steps: int) -> Algorithm:
    """The callback of `config.algorithm`, which leaves the mean of the models to the caller.

    Args:
      steps: local steps of the run.
    """
    module, name = ALGORITHMS[config.algorithm].split(":")
    swarm = config.swarm
    options = {
        "average_statistics": swarm.average_statistics,
        "average_optimizer": swarm.average_optimizer,
        "timeout_seconds": swarm.timeout_seconds,
        "seed": config.seed,
        "average_at_end": False,
    }
    own = getattr(config, config.algorithm, None)
    options |= {k: v for k, v in vars(own).items() if v is not None} if own else {}
    if "switch" in options:
        options["switch_step"] = round(options.pop("switch") * steps)
    algorithm: Algorithm = getattr(importlib.import_module(module), name)(**options)
    return algorithm
