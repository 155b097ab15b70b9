"""What a configuration may hold: the impossible is refused before training, in one line each."""

import functools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from types import UnionType
from typing import Any, get_args, get_origin

from swarm_tf.config import (
    ALGORITHMS,
    ALLREDUCE_BACKENDS,
    BITS,
    CODECS,
    MODES,
    NORMALIZATIONS,
    OPTIMIZERS,
    PARTITIONS,
    PRECISIONS,
    SCHEDULES,
    RunConfig,
)
from swarm_tf.errors import UsageError


def validate(config: RunConfig, size: int) -> None:
    """Holds every key to its type and range, then the keys to each other.

    Args:
      config: as the file and the command line made it.
      size: number of ranks, at least 1.

    Raises:
      UsageError: one line that names the key, its value and what is allowed.
    """
    for key, value, kind in _leaves(config):
        if not _fits(value, kind):
            raise UsageError(f"{key}={value} must be {describe_type(kind)}")
        if value is not None:
            check(key, value)
    _validate_train(config, size)
    _validate_optimizer(config)
    _validate_algorithm(config, size)


def check(key: str, value: Any) -> None:
    """Holds one value to the range of its key, if that has one.

    Raises:
      UsageError: one line that names the key, its value and what is allowed.
    """
    if key in _rules():
        allowed, words = _rules()[key]
        if not allowed(value):
            raise UsageError(f"{key}={value} must be {words}")


def whole_number(key: str, value: Any) -> int:
    """An argument that counts something; NumPy's whole numbers are taken too.

    Raises:
      UsageError: it is a fraction, a boolean or no number.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    raise UsageError(f"{key}={value!r} must be a whole number")


def positive_number(key: str, value: Any) -> float:
    """An argument in seconds or the like; NumPy's numbers are taken too.

    Raises:
      UsageError: it is not above 0 and finite, a boolean, or no number.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and number > 0:
            return number
    raise UsageError(f"{key}={value!r} must be a number above 0")


def switch(key: str, value: Any) -> bool:
    """An argument that is True or False; NumPy's are taken too.

    Raises:
      UsageError: it is anything else.
    """
    if isinstance(value, bool) or type(value).__name__ == "bool":  # numpy.bool
        return bool(value)
    raise UsageError(f"{key}={value!r} must be True or False")


def refuse_unused(section: str, values: Any, keys: Iterable[str], reason: str) -> None:
    """Holds keys that mean nothing for this run to their defaults.

    Args:
      section: "model", "data", ...; `values` is its dataclass.
      reason: completes "model.dropout=0.1 has no effect on ...".

    Raises:
      UsageError: if one has another value.
    """
    defaults = {item.name: item.default for item in fields(values)}
    for key in keys:
        value, default = getattr(values, key), defaults[key]
        if value != default:
            raise UsageError(
                f"{section}.{key}={value} has no effect on {reason}; leave it at {default}"
            )


def describe_type(kind: Any) -> str:
    """What a key of this annotated type takes, in words for an error line."""
    if isinstance(kind, UnionType):
        return " or ".join(describe_type(option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return "a tuple of numbers such as (0.5, 0.75)"
    words = {
        int: "a whole number",
        float: "a finite number",
        bool: "True or False",
        str: "a string",
        type(None): "None",
    }
    return words.get(kind) or f"a {kind.__name__}"


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value, annotated type) of every key that holds no further section."""
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value, item.type


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, float) for item in value)
    if kind is not bool and isinstance(value, bool):
        return False  # to Python, True is an int
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


_Rule = tuple[Callable[[Any], bool], str]


def _one_of(options: tuple[Any, ...]) -> _Rule:
    return options.__contains__, f"one of {', '.join(map(str, options))}"


def _at_least(low: int) -> _Rule:
    return lambda value: value >= low, f"{low} or more"


_POSITIVE: _Rule = (lambda value: value > 0, "above 0")
_SHARE: _Rule = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_NAMED: _Rule = (lambda value: value != "", "a name, not empty")
_DIRECTORY: _Rule = (lambda value: value != "", "a directory, not empty")
_LANGUAGE: _Rule = (lambda value: value != "", "a language such as en, or None")


@functools.cache
def _rules() -> dict[str, _Rule]:
    # Inside a function, so that reading a config needs no networkx.
    from swarm_tf.local_steps import DISTRIBUTIONS
    from swarm_tf.topology import TOPOLOGIES

    # A callback may be given a graph, whose edges stand here then.
    graph = (
        lambda value: not isinstance(value, str) or value in TOPOLOGIES,
        f"one of {', '.join(TOPOLOGIES)}",
    )
    return {
        "algorithm": _one_of(tuple(ALGORITHMS)),
        "seed": (lambda value: 0 <= value < 2**31, "from 0 to 2147483647"),
        "model.name": _NAMED,
        "model.dropout": _SHARE,
        "model.normalization": _one_of(NORMALIZATIONS),
        "model.memory_length": _at_least(0),
        "data.name": _NAMED,
        "data.data_dir": _DIRECTORY,
        "data.partition": _one_of(PARTITIONS),
        "data.dirichlet_alpha": _POSITIVE,
        "data.image_size": _at_least(1),
        "data.source": _LANGUAGE,
        "data.target": _LANGUAGE,
        "data.vocabulary_size": _at_least(1),
        "data.max_length": _at_least(1),
        "data.train_examples": _at_least(1),
        "data.cache_dir": _DIRECTORY,
        "train.epochs": _POSITIVE,
        "train.max_steps": _at_least(1),
        "train.batch_size": _at_least(1),
        "train.epoch_multiplier": _POSITIVE,
        "train.mixed_precision": _one_of(PRECISIONS),
        "train.label_smoothing": _SHARE,
        "train.log_every": _at_least(1),
        "train.evaluate_every": _POSITIVE,
        "train.step_seconds": _at_least(0),
        "train.slow_factors": (lambda values: min(values, default=1) >= 1, "each 1 or more"),
        "train.threads": _at_least(0),
        "optimizer.name": _one_of(OPTIMIZERS),
        "optimizer.learning_rate": _POSITIVE,
        "optimizer.momentum": _SHARE,
        "optimizer.beta_2": _SHARE,
        "optimizer.epsilon": _POSITIVE,
        "optimizer.clip_norm": _POSITIVE,
        "optimizer.weight_decay": _at_least(0),
        "optimizer.schedule": _one_of(SCHEDULES),
        "optimizer.warmup_epochs": _at_least(0),
        "optimizer.step_boundaries": (_rising_fractions, "rising, between 0 and 1"),
        "optimizer.step_factor": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
        "swarm.local_steps": _at_least(1),
        "swarm.local_steps_distribution": _one_of(DISTRIBUTIONS),
        "swarm.mode": _one_of(MODES),
        "swarm.codec": _one_of(CODECS),
        "swarm.bits": _one_of(BITS),
        "swarm.max_staleness": _at_least(1),
        "swarm.topology": graph,
        "swarm.degree": _at_least(1),
        "swarm.timeout_seconds": _POSITIVE,
        "allreduce.backend": _one_of(ALLREDUCE_BACKENDS),
        "allreduce.bucket_mib": _POSITIVE,
        "local_sgd.local_steps": _at_least(1),
        "local_sgd.switch": (lambda value: 0 <= value <= 1, "from 0 to 1"),
        "dpsgd.topology": graph,
        "dpsgd.degree": _at_least(1),
        "adpsgd.topology": graph,
        "adpsgd.degree": _at_least(1),
        "adpsgd.max_staleness": _at_least(1),
        "diloco.local_steps": _at_least(1),
        "diloco.outer_learning_rate": _POSITIVE,
        "diloco.outer_momentum": _SHARE,
        "noloco.local_steps": _at_least(1),
        "noloco.outer_learning_rate": _POSITIVE,
        "noloco.outer_momentum": _SHARE,
        "noloco.attraction": _POSITIVE,
    }


def _rising_fractions(values: tuple[float, ...]) -> bool:
    return all(low < high for low, high in pairwise((0.0, *values, 1.0)))


def _validate_train(config: RunConfig, size: int) -> None:
    train = config.train
    if train.slow_factors and len(train.slow_factors) != size:
        raise UsageError(
            f"train.slow_factors={train.slow_factors} must have a factor for each rank, "
            f"but this run has {size}"
        )
    waits = ["algorithm=allreduce"] if config.algorithm == "allreduce" else []
    waits += [f"train.slow_factors={train.slow_factors}"] if train.slow_factors else []
    waits += [f"train.step_seconds={train.step_seconds}"] if train.step_seconds else []
    if train.jit_compile and waits:
        raise UsageError(
            f"train.jit_compile=True with {waits[0]}: XLA has no way to wait within a step; "
            "leave it at False"
        )


def _validate_optimizer(config: RunConfig) -> None:
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


def _validate_algorithm(config: RunConfig, size: int) -> None:
    from swarm_tf import topology

    name = config.algorithm
    if name == "single":
        if size > 1:
            raise UsageError(
                f"algorithm=single trains on one rank, but this run has {size}; "
                "start one rank or use algorithm=swarm"
            )
        return
    options: Any = getattr(config, name, None)
    if hasattr(options, "topology"):
        try:
            topology.build(options.topology, size, degree=options.degree, seed=config.seed)
        except UsageError as error:
            raise UsageError(f"{name}.{error}") from None
    if name in ("diloco", "noloco") and config.swarm.average_optimizer:
        raise UsageError(
            f"swarm.average_optimizer=True has no effect on algorithm={name}; leave it at False"
        )
    # With blocking no step is taken during an exchange, so there is nothing to bound.
    swarm = config.swarm
    if (
        name == "swarm"
        and swarm.mode != "blocking"
        and swarm.max_staleness is not None
        and swarm.max_staleness < swarm.local_steps
    ):
        raise UsageError(
            f"swarm.max_staleness={swarm.max_staleness} must be at least swarm.local_steps="
            f"{swarm.local_steps}; for no training during an exchange use swarm.mode=blocking"
        )
