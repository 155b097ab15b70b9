"""The dataclasses of a run; validation.py says which values they may have.

A file in configs/ returns a `RunConfig` from `get_config()`; `--config.SECTION.KEY=VALUE` sets a
single key (see flags.py). Annotations must stay real types: ml_collections reads them to parse
the command line, so no `from __future__ import annotations` here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Each class is a keras.callbacks.Callback that takes the keys of config.NAME.
ALGORITHMS = {
    "swarm": "swarm_tf.swarmsgd:SwarmCallback",
    "single": "swarm_tf.algorithm:Single",
    "allreduce": "swarm_tf.baselines.allreduce:AllReduce",
    "local_sgd": "swarm_tf.baselines.local_sgd:LocalSGD",
    "dpsgd": "swarm_tf.baselines.dpsgd:DPSGD",
    "adpsgd": "swarm_tf.baselines.adpsgd:ADPSGD",
    "sgp": "swarm_tf.baselines.sgp:SGP",
    "diloco": "swarm_tf.baselines.diloco:DiLoCo",
    "noloco": "swarm_tf.baselines.noloco:NoLoCo",
}
ALLREDUCE_BACKENDS = ("mpi", "horovod")
PARTITIONS = ("iid", "static", "dirichlet")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step", "inverse_sqrt")
NORMALIZATIONS = ("post", "pre")
MODES = ("nonblocking", "blocking", "pull")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
CODECS = ("lattice", "float32", "bfloat16", "float16")
BITS = (2, 3, 4, 5, 6, 7, 8, 16)


@dataclass(kw_only=True)
class ModelConfig:
    """Which network; models/ knows the names."""

    name: str
    dropout: float | None = None  # of translation models, as the keys below; None: as its size has
    normalization: str = "post"  # or pre: LayerNorm behind or before each sublayer
    memory_length: int = 0  # tokens that a transformer_xl looks back at, before its segment


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
    label_smoothing: float = 0.0  # share of the label's weight that all classes get alike
    jit_compile: bool = False  # XLA made the training step slower on CPUs
    log_every: int = 10  # local steps
    evaluate_every: float = 1.0  # epochs; in a swarm every rank tests its own model then
    recalibrate: bool = False  # estimate the mean model's BatchNorm statistics anew
    step_seconds: float = 0.0  # a step takes at least so long, as a slower machine's; for trials
    slow_factors: tuple[float, ...] = ()  # and on each rank so many times longer; empty: 1
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
    average_statistics: bool = True  # BatchNorm's moving mean and variance; of every algorithm
    average_optimizer: bool = False  # of every algorithm
    timeout_seconds: float = 60.0  # of any wait for another rank; of every algorithm


@dataclass(kw_only=True)
class AllReduceConfig:
    """Large-batch SGD; baselines/allreduce.py."""

    backend: str = "mpi"
    bucket_mib: float = 1.0


@dataclass(kw_only=True)
class LocalSGDConfig:
    """Local SGD; baselines/local_sgd.py."""

    local_steps: int = 4
    switch: float = 0.0  # fraction of the run that averages every step, before


@dataclass(kw_only=True)
class DPSGDConfig:
    """D-PSGD; baselines/dpsgd.py."""

    topology: str = "ring"
    degree: int = 4  # for topology=random_regular


@dataclass(kw_only=True)
class ADPSGDConfig:
    """AD-PSGD; baselines/adpsgd.py."""

    topology: str = "complete"
    degree: int = 4  # for topology=random_regular
    max_staleness: int = 4


@dataclass(kw_only=True)
class SGPConfig:
    """Stochastic gradient push; baselines/sgp.py."""

    overlap: bool = False


@dataclass(kw_only=True)
class DiLoCoConfig:
    """DiLoCo; baselines/diloco.py."""

    local_steps: int = 32
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9


@dataclass(kw_only=True)
class NoLoCoConfig:
    """NoLoCo; baselines/noloco.py."""

    local_steps: int = 32
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.5
    attraction: float = 0.7


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
    allreduce: AllReduceConfig = field(default_factory=AllReduceConfig)
    local_sgd: LocalSGDConfig = field(default_factory=LocalSGDConfig)
    dpsgd: DPSGDConfig = field(default_factory=DPSGDConfig)
    adpsgd: ADPSGDConfig = field(default_factory=ADPSGDConfig)
    sgp: SGPConfig = field(default_factory=SGPConfig)
    diloco: DiLoCoConfig = field(default_factory=DiLoCoConfig)
    noloco: NoLoCoConfig = field(default_factory=NoLoCoConfig)

    @property
    def epoch_multiplier(self) -> float:
        """How much longer than the sequential recipe the run is; `single` is that recipe."""
        return 1.0 if self.algorithm == "single" else self.train.epoch_multiplier

    @property
    def total_epochs(self) -> float:
        """Passes over the data in the whole run, unless `train.max_steps` is set."""
        return self.train.epochs * self.epoch_multiplier


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
