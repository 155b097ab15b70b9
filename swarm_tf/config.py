"""The configuration of a run, section by section.

A file in configs/ returns a `RunConfig` from `get_config()`; `--config.SECTION.KEY=VALUE` sets a
single key (see flags.py). docs/configuration.md lists all keys. The sections of algorithms stand in
the files of the algorithms. Annotations must stay real types, since ml_collections reads them to
parse the command line: so no `from __future__ import annotations` here and there.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from swarm_tf.algorithm import Algorithm, Single, SingleConfig
from swarm_tf.baselines.adpsgd import ADPSGD, ADPSGDConfig
from swarm_tf.baselines.allreduce import AllReduce, AllReduceConfig
from swarm_tf.baselines.diloco import DiLoCo, DiLoCoConfig
from swarm_tf.baselines.dpsgd import DPSGD, DPSGDConfig
from swarm_tf.baselines.local_sgd import LocalSGD, LocalSGDConfig
from swarm_tf.baselines.noloco import NoLoCo, NoLoCoConfig
from swarm_tf.baselines.sgp import SGP, SGPConfig
from swarm_tf.options import (
    ANY,
    DIRECTORY,
    NAME,
    POSITIVE,
    SEED,
    SHARE,
    at_least,
    one_of,
    option,
    required,
    rule,
)
from swarm_tf.swarmsgd import SwarmCallback, SwarmConfig

CLASSIFICATION, TRANSLATION = "classification", "translation"
PARTITIONS = ("iid", "static", "dirichlet")

_LANGUAGE = rule("a language such as en, or None", lambda value: value != "", obvious=True)
_FACTORS = rule("each 1 or more", lambda values: min(values, default=1) >= 1)
_RISING = rule(
    "rising, between 0 and 1",
    lambda values: all(low < high for low, high in pairwise((0.0, *values, 1.0))),
)


@dataclass(kw_only=True)
class ModelConfig:
    """Which network; models/ knows the names."""

    name: str = required(NAME, "network, by its name in models/")
    dropout: float | None = option(
        None, SHARE, "share of activations that is dropped; None: as its size has", only=TRANSLATION
    )
    normalization: str = option(
        "post",
        one_of(("post", "pre")),
        "LayerNorm behind (post) or before (pre) each sublayer",
        only=TRANSLATION,
    )
    memory_length: int = option(
        0,
        at_least(0),
        "tokens before the segment that a transformer_xl attends to",
        only=TRANSLATION,
    )


@dataclass(kw_only=True)
class DataConfig:
    """Which data, and how the ranks share it; data/ knows the names."""

    name: str = required(NAME, "data set: digits, number_words, or a prepared one of TFDS")
    data_dir: str | None = option(
        None, DIRECTORY, "where TFDS keeps its prepared sets; None: TFDS's own choice"
    )
    partition: str = option(
        "iid",
        one_of(PARTITIONS),
        "how examples are dealt to ranks: anew in every epoch (iid), once for all (static), or "
        "once with label skew (dirichlet)",
    )
    dirichlet_alpha: float = option(
        0.5, POSITIVE, "for partition=dirichlet: the smaller, the fewer classes a rank sees"
    )
    augment: bool = option(False, ANY, "random flips and crops in training", only=CLASSIFICATION)
    image_size: int = option(
        224,
        at_least(1),
        "height and width of images that are streamed, not held in memory",
        only=CLASSIFICATION,
    )
    source: str | None = option(
        None, _LANGUAGE, "language to translate from; None: the set's first", only=TRANSLATION
    )
    target: str | None = option(
        None, _LANGUAGE, "language to translate into; None: the set's second", only=TRANSLATION
    )
    vocabulary_size: int = option(
        37000,
        at_least(1),
        "pieces that both languages share (Vaswani et al. 2017, section 5.1)",
        only=TRANSLATION,
    )
    max_length: int = option(
        256,
        at_least(1),
        "tokens of a sentence; training leaves out pairs with a longer one",
        only=TRANSLATION,
    )
    train_examples: int | None = option(
        None,
        at_least(1),
        "pairs of number_words, in documents of 20; None: 10,000",
        only=TRANSLATION,
    )
    cache_dir: str | None = option(
        None, DIRECTORY, "where tokens are kept for other runs; None: the workdir", only=TRANSLATION
    )


@dataclass(kw_only=True)
class TrainConfig:
    """How long and in what portions. An epoch is one pass over the data by all ranks together."""

    epochs: float = required(POSITIVE, "passes over the data by all ranks together")
    max_steps: int | None = option(
        None, at_least(1), "local steps a rank, in place of epochs; None: as epochs says"
    )
    batch_size: int = required(
        at_least(1), "examples a local step of one rank: images, or target tokens with padding"
    )
    epoch_multiplier: float = option(
        1.0, POSITIVE, "factor on epochs, as in the paper; single has none"
    )
    mixed_precision: str = option(
        "float32",
        one_of(("float32", "mixed_bfloat16", "mixed_float16")),
        "Keras' dtype policy; weights stay float32",
    )
    label_smoothing: float = option(
        0.0, SHARE, "share of a label's weight that is spread over all classes"
    )
    jit_compile: bool = option(
        False, ANY, "compile the training step with XLA; on CPUs it was slower"
    )
    log_every: int = option(10, at_least(1), "local steps between two lines of metrics.jsonl")
    evaluate_every: float = option(
        1.0, POSITIVE, "epochs between two tests; in a swarm each rank tests its own model"
    )
    recalibrate: bool = option(
        False, ANY, "estimate the mean model's BatchNormalization statistics anew before its test"
    )
    step_seconds: float = option(
        0.0, at_least(0), "least duration of a step, to play a slower machine"
    )
    slow_factors: tuple[float, ...] = option(
        (), _FACTORS, "factor on each rank's step duration, to play uneven machines; empty: 1"
    )
    threads: int = option(
        0, at_least(0), "TensorFlow's intra-op threads a rank; 0: the rank's share of the cores"
    )


@dataclass(kw_only=True)
class OptimizerConfig:
    """The local optimizer; its schedule counts the rank's own steps."""

    name: str = option("momentum", one_of(("sgd", "momentum", "adam", "adamw")), "the optimizer")
    learning_rate: float = required(POSITIVE, "learning rate at its peak")
    momentum: float = option(0.9, SHARE, "for name=momentum: decay of the velocity")
    beta_2: float = option(0.999, SHARE, "for adam and adamw: decay of the second moment")
    epsilon: float = option(1e-7, POSITIVE, "for adam and adamw: added to the second moment's root")
    clip_norm: float | None = option(
        None, POSITIVE, "largest norm of the gradient of all weights together; None: no limit"
    )
    nesterov: bool = option(False, ANY, "Nesterov's momentum")
    weight_decay: float = option(0.0, at_least(0), "L2 penalty, or of adamw decoupled decay")
    decay_all: bool = option(
        False, ANY, "decay biases and BatchNormalization's scales and offsets too"
    )
    schedule: str = option(
        "constant",
        one_of(("constant", "cosine", "step", "inverse_sqrt")),
        "course of the learning rate",
    )
    warmup_epochs: float = option(
        0.0, at_least(0), "epochs of linear warm-up, counted as train.epochs"
    )
    step_boundaries: tuple[float, ...] = option(
        (), _RISING, "for schedule=step: fractions of the run"
    )
    step_factor: float = option(
        0.1,
        rule("above 0 and at most 1", lambda value: 0 < value <= 1),
        "for schedule=step: the learning rate is multiplied by it at each boundary",
    )


def section(algorithm: type[Algorithm], config: type) -> Any:
    """The section of an algorithm; the name of the field is the algorithm's."""
    return field(default_factory=config, metadata={"algorithm": algorithm})


@dataclass(kw_only=True)
class RunConfig:
    """Everything that decides a run, except the number of ranks.

    It is the table of algorithms too: one of another package is added by a subclass with one more
    section (docs/extending.md).
    """

    algorithm: str = option("swarm", NAME, "how ranks train together: the name of a section below")
    seed: int = option(0, SEED, "of all that is random; the same on all ranks")
    task: str | None = option(
        None, NAME, "what is learned, by its name in tasks/; None: the task that has model.name"
    )
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    swarm: SwarmConfig = section(SwarmCallback, SwarmConfig)
    single: SingleConfig = section(Single, SingleConfig)
    allreduce: AllReduceConfig = section(AllReduce, AllReduceConfig)
    local_sgd: LocalSGDConfig = section(LocalSGD, LocalSGDConfig)
    dpsgd: DPSGDConfig = section(DPSGD, DPSGDConfig)
    adpsgd: ADPSGDConfig = section(ADPSGD, ADPSGDConfig)
    sgp: SGPConfig = section(SGP, SGPConfig)
    diloco: DiLoCoConfig = section(DiLoCo, DiLoCoConfig)
    noloco: NoLoCoConfig = section(NoLoCo, NoLoCoConfig)

    @property
    def epoch_multiplier(self) -> float:
        """How much longer than the sequential recipe the run is; `single` is that recipe."""
        return 1.0 if self.algorithm == "single" else self.train.epoch_multiplier

    @property
    def total_epochs(self) -> float:
        """Passes over the data in the whole run, unless `train.max_steps` is set."""
        return self.train.epochs * self.epoch_multiplier


def algorithms(config: RunConfig | type[RunConfig] = RunConfig) -> dict[str, type[Algorithm]]:
    """The table of algorithms: their classes by name."""
    return {
        section.name: section.metadata["algorithm"]
        for section in dataclasses.fields(config)
        if "algorithm" in section.metadata
    }


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested plain values that survive JSON unchanged; tuples become lists."""
    plain: dict[str, Any] = dataclasses.asdict(
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
