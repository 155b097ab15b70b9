"""The configuration of a run, section by section.

A file in configs/ returns a `RunConfig` from `get_config()`; `--config.SECTION.KEY=VALUE` sets a
single key (see runner/flags.py). docs/configuration.md lists all keys. The section of an algorithm
is defined in the file of that algorithm. ml_collections reads the annotations to parse the command
line, so they must be types, not strings: no `from __future__ import annotations` in these files.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from swarm_tf.algorithm import Algorithm
from swarm_tf.baselines.adpsgd import ADPSGD, ADPSGDConfig
from swarm_tf.baselines.allreduce import AllReduce, AllReduceConfig
from swarm_tf.baselines.diloco import DiLoCo, DiLoCoConfig
from swarm_tf.baselines.dpsgd import DPSGD, DPSGDConfig
from swarm_tf.baselines.local_sgd import LocalSGD, LocalSGDConfig
from swarm_tf.baselines.noloco import NoLoCo, NoLoCoConfig
from swarm_tf.baselines.sgp import SGP, SGPConfig
from swarm_tf.baselines.single import Single, SingleConfig
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
_FACTORS = rule("numbers of 1 or more", lambda values: min(values, default=1) >= 1)
_ASCENDING = rule(
    "ascending numbers between 0 and 1",
    lambda values: all(low < high for low, high in pairwise((0.0, *values, 1.0))),
)


@dataclass(kw_only=True)
class ModelConfig:
    """The network to train; models/ defines the names."""

    name: str = required(NAME, "the name of a network in models/")
    dropout: float | None = option(
        None, SHARE, "dropout rate; None: the default of the named model", only=TRANSLATION
    )
    normalization: str = option(
        "post",
        one_of(("post", "pre")),
        "LayerNorm after (post) or before (pre) each sublayer",
        only=TRANSLATION,
    )
    memory_length: int = option(
        0,
        at_least(0),
        "for a transformer_xl: preceding tokens of the document that a segment attends to",
        only=TRANSLATION,
    )


@dataclass(kw_only=True)
class DataConfig:
    """The data set, and how its examples are distributed over the ranks."""

    name: str = required(
        NAME, "digits, number_words, or the name of a TFDS set that is prepared on disk"
    )
    data_dir: str | None = option(
        None,
        DIRECTORY,
        "directory with the prepared sets of TFDS; None: the default of TFDS",
        may_change=True,
    )
    partition: str = option(
        "iid",
        one_of(PARTITIONS),
        "how examples are distributed over the ranks: randomly in every epoch (iid), randomly once "
        "(static), or once with label skew (dirichlet)",
    )
    dirichlet_alpha: float = option(
        0.5,
        POSITIVE,
        "for partition=dirichlet: concentration; a smaller value gives each rank fewer classes",
    )
    augment: bool = option(False, ANY, "random flips and crops in training", only=CLASSIFICATION)
    image_size: int = option(
        224,
        at_least(1),
        "height and width to which images are resized, if the set is streamed from disk",
        only=CLASSIFICATION,
    )
    source: str | None = option(
        None, _LANGUAGE, "source language; None: the set's first language", only=TRANSLATION
    )
    target: str | None = option(
        None, _LANGUAGE, "target language; None: the set's second language", only=TRANSLATION
    )
    vocabulary_size: int = option(
        37000,
        at_least(1),
        "subword pieces in the vocabulary that both languages share (Vaswani et al. 2017, 5.1)",
        only=TRANSLATION,
    )
    max_length: int = option(
        256,
        at_least(1),
        "longest sentence in tokens; training omits pairs with a longer sentence",
        only=TRANSLATION,
    )
    train_examples: int | None = option(
        None,
        at_least(1),
        "for number_words: training pairs, a multiple of 20 (a document); None: 10,000",
        only=TRANSLATION,
    )
    cache_dir: str | None = option(
        None,
        DIRECTORY,
        "directory where tokenized sets are stored for later runs; None: the workdir",
        only=TRANSLATION,
        may_change=True,
    )


@dataclass(kw_only=True)
class TrainConfig:
    """The training loop. An epoch is one pass over the data by all ranks together."""

    epochs: float = required(
        POSITIVE, "passes over the data by all ranks together", may_change=True
    )
    max_steps: int | None = option(
        None,
        at_least(1),
        "local steps per rank, overrides epochs; None: as many as epochs requires",
        may_change=True,
    )
    batch_size: int = required(
        at_least(1), "images, or target tokens including padding, per local step of one rank"
    )
    epoch_multiplier: float = option(
        1.0,
        POSITIVE,
        "factor by which epochs is multiplied, as in the paper; not with algorithm=single",
    )
    mixed_precision: str = option(
        "float32",
        one_of(("float32", "mixed_bfloat16", "mixed_float16")),
        "Keras' dtype policy; weights stay float32",
    )
    label_smoothing: float = option(
        0.0, SHARE, "share of each label's probability that is spread over all classes"
    )
    jit_compile: bool = option(
        False, ANY, "compile the training step with XLA; measured as slower on CPUs"
    )
    log_every: int = option(
        10, at_least(1), "local steps between two lines of metrics.jsonl", may_change=True
    )
    evaluate_every: float = option(
        1.0,
        POSITIVE,
        "epochs between two evaluations on the test set; in a swarm each rank evaluates its model",
        may_change=True,
    )
    bleu: bool = option(
        True,
        ANY,
        "at the end, translate the test split with the mean model and compute BLEU",
        only=TRANSLATION,
        may_change=True,
    )
    checkpoint_every: float | None = option(
        10.0,
        POSITIVE,
        "minutes between two checkpoints of a rank, from which the same command goes on; one more "
        "is written at the end and at a signal; None: no checkpoints",
        may_change=True,
    )
    checkpoint_steps: int | None = option(
        None,
        at_least(1),
        "local steps between two checkpoints, overrides checkpoint_every; None: as that says",
        may_change=True,
    )
    checkpoint_keep: int = option(
        2, at_least(1), "checkpoints that each rank keeps", may_change=True
    )
    recalibrate: bool = option(
        False,
        ANY,
        "estimate the BatchNormalization statistics of the mean model again before its evaluation",
        may_change=True,
    )
    step_seconds: float = option(
        0.0, at_least(0), "minimum seconds per step, to simulate a slow machine", may_change=True
    )
    slow_factors: tuple[float, ...] = option(
        (),
        _FACTORS,
        "a factor on the step duration of each rank, to simulate uneven machines; empty: all 1",
        may_change=True,
    )
    threads: int = option(
        0,
        at_least(0),
        "TensorFlow's intra-op threads per rank; 0: the cores of the host divided by its ranks",
        may_change=True,
    )


@dataclass(kw_only=True)
class OptimizerConfig:
    """The local optimizer of each rank; its schedule counts that rank's own steps."""

    name: str = option("momentum", one_of(("sgd", "momentum", "adam", "adamw")), "the optimizer")
    learning_rate: float = required(
        POSITIVE, "learning rate after warm-up, the highest of the schedule"
    )
    momentum: float = option(0.9, SHARE, "for name=momentum: momentum coefficient")
    beta_2: float = option(0.999, SHARE, "for adam and adamw: decay rate of the second moment")
    epsilon: float = option(
        1e-7, POSITIVE, "for adam and adamw: constant added to the root of the second moment"
    )
    clip_norm: float | None = option(
        None, POSITIVE, "limit on the global gradient norm (over all weights); None: no limit"
    )
    nesterov: bool = option(False, ANY, "for name=momentum: Nesterov momentum")
    weight_decay: float = option(0.0, at_least(0), "weight decay, decoupled as in AdamW")
    decay_all: bool = option(
        False,
        ANY,
        "apply weight decay also to biases and to scales and offsets of normalization layers",
    )
    schedule: str = option(
        "constant",
        one_of(("constant", "cosine", "step", "inverse_sqrt")),
        "learning-rate schedule after warm-up",
    )
    warmup_epochs: float = option(
        0.0, at_least(0), "epochs of linear warm-up, in the same unit as train.epochs"
    )
    step_boundaries: tuple[float, ...] = option(
        (),
        _ASCENDING,
        "for schedule=step: fractions of the run after which the learning rate falls",
    )
    step_factor: float = option(
        0.1,
        rule("above 0 and at most 1", lambda value: 0 < value <= 1),
        "for schedule=step: factor on the learning rate at each boundary",
    )


def section(algorithm: type[Algorithm], config: type) -> Any:
    """A field of `RunConfig`: the section of an algorithm, with the algorithm's name."""
    return field(default_factory=config, metadata={"algorithm": algorithm})


@dataclass(kw_only=True)
class RunConfig:
    """The whole configuration of a run, except the number of ranks.

    It is also the table of algorithms: a subclass with one more section adds an algorithm
    (docs/extending.md).
    """

    algorithm: str = option(
        "swarm", NAME, "the training algorithm: the name of one of the sections algorithm=... below"
    )
    seed: int = option(0, SEED, "seed of all random numbers, the same on all ranks")
    task: str | None = option(
        None, NAME, "the name of a task in tasks/; None: the task that model.name belongs to"
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
        """Length of the run relative to the sequential recipe; 1 for `single`."""
        return 1.0 if self.algorithm == "single" else self.train.epoch_multiplier

    @property
    def total_epochs(self) -> float:
        """Passes over the data in the whole run, unless `train.max_steps` is set."""
        return self.train.epochs * self.epoch_multiplier


def algorithms(config: RunConfig | type[RunConfig] = RunConfig) -> dict[str, type[Algorithm]]:
    """The classes of the algorithms, by name."""
    return {
        section.name: section.metadata["algorithm"]
        for section in dataclasses.fields(config)
        if "algorithm" in section.metadata
    }


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested dicts of values that JSON can represent exactly; tuples become lists."""
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
