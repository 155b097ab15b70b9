"""Checks a configuration before training; every error is one line."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from swarm_tf import options
from swarm_tf.config import RunConfig, algorithms, to_dict
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


def check_unchanged(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Checks that a run that goes on from checkpoints has the configuration that it began with.

    Keys of other algorithms do not count, nor those that `may_change`.

    Args:
      saved: `config.to_dict` of the run that wrote the checkpoints.

    Raises:
      UsageError: names the first key that differs, and both values.
    """
    now, others = to_dict(config), algorithms(config).keys() - {config.algorithm, "swarm"}
    _check_section(config, now, saved, "")
    for section in fields(config):
        if "rule" not in section.metadata and section.name not in others:
            value: Any = getattr(config, section.name)
            earlier = saved.get(section.name, {})
            _check_section(value, now[section.name], earlier, f"{section.name}.")


def _check_section(section: Any, now: Mapping[str, Any], saved: Mapping[str, Any], at: str) -> None:
    for option in options.fields(section):
        name = option.name
        if option.metadata["may_change"] or name not in saved or now[name] == saved[name]:
            continue
        raise UsageError(
            f"{at}{name}={now[name]}, but the run of the checkpoints in --workdir began with "
            f"{saved[name]}; keep that, or begin anew with --resume=never"
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
