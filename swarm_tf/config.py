"""The dataclasses of a run, and `validate`, which refuses what cannot work before training.

A file in configs/ returns a `RunConfig` from `get_config()`; `--config.SECTION.KEY=VALUE` sets a
single key (see flags.py). Annotations must stay real types: ml_collections reads them to parse
the command line, so no `from __future__ import annotations` here.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import pairwise
from types import UnionType
from typing import Any, get_args, get_origin

from swarm_tf.errors import UsageError

ALGORITHMS = ("swarm", "single")
PARTITIONS = ("iid", "static", "dirichlet")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step", "inverse_sqrt")
MODES = ("nonblocking", "blocking", "pull")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
CODECS = ("lattice", "float32", "bfloat16", "float16")
BITS = (2, 3, 4, 5, 6, 7, 8, 16)


@dataclass(kw_only=True)
class ModelConfig:
    """Which network; models/ knows the names."""

    name: str


@dataclass(kw_only=True)
class DataConfig:
    """Which data, and how the ranks share it; data/ knows the names."""

    name: str
    data_dir: str | None = None  # of TFDS; None is TFDS' own choice
    partition: str = "iid"
    dirichlet_alpha: float = 0.5  # the smaller, the fewer classes a rank sees
    augment: bool = False
    image_size: int = 224  # height and width of images that are streamed, not held in memory
    source: str | None = None  # language of a translation set, "en"; None: as the set has it
    target: str | None = None
    vocabulary_size: int = 37000  # pieces that both languages share; Vaswani et al. 2017, 5.1
    max_length: int = 256  # tokens; training leaves out longer sentences, with their partners
    train_examples: int | None = None  # pairs of number_words, in documents of 20; None: 10,000
    cache_dir: str | None = None  # of tokenized sets, to use again; None is the workdir


@dataclass(kw_only=True)
class TrainConfig:
    """How long and in what portions. An epoch is one pass over the data by all ranks together."""

    epochs: float
    max_steps: int | None = None  # local steps a rank; wins over epochs
    batch_size: int  # a rank; images, or target tokens with their padding
    epoch_multiplier: float = 1.0  # the paper's factor on the epochs of algorithm=single
    mixed_precision: str = "float32"  # or mixed_bfloat16, mixed_float16; weights stay float32
    jit_compile: bool = False  # XLA made the training step slower on CPUs
    log_every: int = 10  # local steps
    evaluate_every: float = 1.0  # epochs
    recalibrate: bool = False  # estimate the mean model's BatchNorm statistics anew
    threads: int = 0  # intra-op threads a rank; 0 is its share of the cores


@dataclass(kw_only=True)
class OptimizerConfig:
    """The local optimizer; its schedule counts the rank's own steps."""

    name: str = "momentum"
    learning_rate: float
    momentum: float = 0.9  # only for name=momentum
    beta_2: float = 0.999  # only for adam and adamw, as epsilon
    epsilon: float = 1e-7
    clip_norm: float | None = None  # longest gradient, over all weights
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_all: bool = False  # also biases and BatchNorm's scales and offsets
    schedule: str = "constant"
    warmup_epochs: float = 0.0  # of the sequential recipe, as train.epochs
    step_boundaries: tuple[float, ...] = ()  # fractions of the run, for schedule=step
    step_factor: float = 0.1  # the learning rate is multiplied by it at each boundary


@dataclass(kw_only=True)
class SwarmConfig:
    """How often, with whom and in what form models are averaged."""

    local_steps: int = 4
    local_steps_distribution: str = "fixed"
    mode: str = "nonblocking"
    codec: str = "lattice"
    bits: int = 8  # a weight, for codec=lattice
    max_staleness: int | None = None  # local steps to train past an unanswered exchange; None: 4 H
    topology: str = "complete"
    degree: int = 4  # for topology=random_regular
    average_statistics: bool = True  # BatchNorm's moving mean and variance
    average_optimizer: bool = False
    timeout_seconds: float = 60.0  # of any wait for another rank


@dataclass(kw_only=True)
class RunConfig:
    """Everything that decides a run, except the number of ranks."""

    algorithm: str = "swarm"
    seed: int = 0
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    swarm: SwarmConfig = field(default_factory=SwarmConfig)

    @property
    def epoch_multiplier(self) -> float:
        """How much longer than the sequential recipe the run is; `single` is that recipe."""
        return 1.0 if self.algorithm == "single" else self.train.epoch_multiplier

    @property
    def total_epochs(self) -> float:
        """Passes over the data in the whole run, unless `train.max_steps` is set."""
        return self.train.epochs * self.epoch_multiplier


def validate(config: RunConfig, size: int) -> None:
    """Holds every key to its type and range, then the keys to each other.

    Args:
      config: as the file and the command line made it.
      size: number of ranks, at least 1.

    Raises:
      UsageError: one line that names the key, its value and what is allowed.
    """
    rules = _rules()
    for key, value, kind in _leaves(config):
        if not _fits(value, kind):
            raise UsageError(f"{key}={value} must be {describe_type(kind)}")
        if key in rules and value is not None:
            allowed, words = rules[key]
            if not allowed(value):
                raise UsageError(f"{key}={value} must be {words}")
    _validate_optimizer(config)
    _validate_swarm(config, size)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested plain values that survive JSON unchanged; tuples become lists."""
    plain: dict[str, Any] = asdict(
        config,
        dict_factory=lambda items: {
            key: list(value) if isinstance(value, tuple) else value for key, value in items
        },
    )
    return plain


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys, as on the command line: {"swarm": {"bits": 8}} gives {"swarm.bits": 8}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


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


def _rules() -> dict[str, _Rule]:
    # Inside a function, so that reading a config needs no networkx.
    from swarm_tf.local_steps import DISTRIBUTIONS
    from swarm_tf.topology import TOPOLOGIES

    return {
        "algorithm": _one_of(ALGORITHMS),
        "seed": (lambda value: 0 <= value < 2**31, "from 0 to 2147483647"),
        "model.name": _NAMED,
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
        "train.log_every": _at_least(1),
        "train.evaluate_every": _POSITIVE,
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
        "swarm.topology": _one_of(TOPOLOGIES),
        "swarm.degree": _at_least(1),
        "swarm.timeout_seconds": _POSITIVE,
    }


def _rising_fractions(values: tuple[float, ...]) -> bool:
    return all(low < high for low, high in pairwise((0.0, *values, 1.0)))


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


def _validate_swarm(config: RunConfig, size: int) -> None:
    from swarm_tf import topology

    swarm = config.swarm
    if config.algorithm == "single":
        if size > 1:
            raise UsageError(
                f"algorithm=single trains on one rank, but this run has {size}; "
                "start one rank or use algorithm=swarm"
            )
        return
    topology.build(swarm.topology, size, degree=swarm.degree, seed=config.seed)
    # With blocking no step is taken during an exchange, so there is nothing to bound.
    if (
        swarm.mode != "blocking"
        and swarm.max_staleness is not None
        and swarm.max_staleness < swarm.local_steps
    ):
        raise UsageError(
            f"swarm.max_staleness={swarm.max_staleness} must be at least swarm.local_steps="
            f"{swarm.local_steps}; for no training during an exchange use swarm.mode=blocking"
        )
