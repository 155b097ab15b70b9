"""Checks a configuration before training; every error is one line."""

from dataclasses import fields
from typing import Any

from swarm_tf import options
from swarm_tf.config import RunConfig, algorithms
from swarm_tf.errors import UsageError


def validate(config: RunConfig, size: int) -> None:
    """Checks the type and rule of every key, then combinations of keys.

    Args:
      config: from the file and the command line.
      size: number of ranks, at least 1.

    Raises:
      UsageError: one line that names the key, its value and what is allowed.
    """
    options.check(config, "")
    known = algorithms(config)
    if config.algorithm not in known:
        raise UsageError(f"algorithm={config.algorithm} must be one of {', '.join(known)}")
    for section in fields(config):
        value: Any = getattr(config, section.name)
        if "rule" in section.metadata:
            continue
        options.checked(section.name, value, section.type)
        options.check(value, section.name)
    _check_train(config, size, waits_in_step=known[config.algorithm].waits_in_step)
    _check_optimizer(config)
    getattr(config, config.algorithm).check(
        config.algorithm, ranks=size, seed=config.seed, common=config.swarm
    )


def _check_train(config: RunConfig, size: int, *, waits_in_step: bool) -> None:
    train = config.train
    if train.slow_factors and len(train.slow_factors) != size:
        raise UsageError(
            f"train.slow_factors={train.slow_factors} must have a factor for each rank, "
            f"but this run has {size}"
        )
    reasons = [f"algorithm={config.algorithm}"] if waits_in_step else []
    reasons += [f"train.slow_factors={train.slow_factors}"] if train.slow_factors else []
    reasons += [f"train.step_seconds={train.step_seconds}"] if train.step_seconds else []
    if train.jit_compile and reasons:
        raise UsageError(
            f"train.jit_compile=True with {reasons[0]} is impossible: XLA cannot wait within a "
            "step; set train.jit_compile=False"
        )


def _check_optimizer(config: RunConfig) -> None:
    optimizer, train = config.optimizer, config.train
    if optimizer.schedule == "step" and not optimizer.step_boundaries:
        raise UsageError(
            "optimizer.schedule=step needs optimizer.step_boundaries, fractions of the run "
            "such as (0.5, 0.75)"
        )
    if optimizer.schedule == "inverse_sqrt" and not optimizer.warmup_epochs:
        raise UsageError(
            "optimizer.schedule=inverse_sqrt needs optimizer.warmup_epochs above 0: the learning "
            "rate is at its peak at the end of the warm-up"
        )
    if optimizer.nesterov and (optimizer.name != "momentum" or optimizer.momentum == 0):
        raise UsageError(
            f"optimizer.nesterov=True with optimizer.name={optimizer.name} and "
            f"optimizer.momentum={optimizer.momentum} has no effect; it needs "
            "optimizer.name=momentum and a momentum above 0"
        )
    if train.max_steps is None and optimizer.warmup_epochs >= train.epochs:
        raise UsageError(
            f"optimizer.warmup_epochs={optimizer.warmup_epochs} must be below the "
            f"{train.epochs:g} of train.epochs"
        )
