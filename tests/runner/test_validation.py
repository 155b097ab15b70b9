"""Every impossible value is refused before training, with one line that says what is allowed."""

import dataclasses
import math

import numpy as np
import pytest

from swarm_tf import config as c
from swarm_tf import options
from swarm_tf.codec import CODECS
from swarm_tf.errors import UsageError
from swarm_tf.runner.keys import of as keys_of
from swarm_tf.runner.validation import validate


def make(**overrides):
    """A valid configuration; `swarm__bits=4` sets swarm.bits."""
    config = c.RunConfig(
        model=c.ModelConfig(name="resnet8"),
        data=c.DataConfig(name="digits"),
        train=c.TrainConfig(epochs=10, batch_size=32),
        optimizer=c.OptimizerConfig(learning_rate=0.1),
    )
    for key, value in overrides.items():
        *sections, name = key.split("__")
        holder = config
        for section in sections:
            holder = getattr(holder, section)
        setattr(holder, name, value)
    return config


@pytest.mark.parametrize("size", [1, 2, 8])
def test_defaults_are_valid(size):
    validate(make(), size)


@pytest.mark.parametrize(
    "overrides",
    [
        {"swarm__bits": 16},
        {"train__max_steps": 5, "optimizer__warmup_epochs": 99.0},
        {"swarm__max_staleness": None, "swarm__local_steps": 100},
        {"swarm__mode": "blocking", "swarm__local_steps": 100},
        {"optimizer__schedule": "step", "optimizer__step_boundaries": (0.5, 0.75)},
        {"optimizer__learning_rate": 1},
        {"swarm__topology": "random_regular", "swarm__degree": 3},
        {"optimizer__name": "adamw", "optimizer__weight_decay": 0.01},
    ],
)
def test_possible_values_are_accepted(overrides):
    validate(make(**overrides), 4)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"swarm__bits": 9}, "swarm.bits=9 must be one of 2, 3, 4, 5, 6, 7, 8, 16"),
        ({"swarm__bits": 8.0}, "swarm.bits=8.0 must be a whole number"),
        ({"swarm__bits": True}, "swarm.bits=True must be a whole number"),
        ({"swarm": None}, "swarm=None must be a SwarmConfig"),
        ({"swarm__mode": "fast"}, "swarm.mode=fast must be one of nonblocking, blocking, pull"),
        (
            {"swarm__codec": "int8"},
            f"swarm.codec=int8 must be one of {', '.join(CODECS)}",
        ),
        ({"swarm__local_steps": 0}, "swarm.local_steps=0 must be 1 or more"),
        (
            {"swarm__local_steps_distribution": "poisson"},
            "swarm.local_steps_distribution=poisson must be one of fixed, geometric",
        ),
        ({"swarm__timeout_seconds": 0}, "swarm.timeout_seconds=0 must be above 0"),
        ({"swarm__max_staleness": "x"}, "swarm.max_staleness=x must be a whole number or None"),
        ({"swarm__average_statistics": 1}, "swarm.average_statistics=1 must be True or False"),
        ({"algorithm": "lars"}, "algorithm=lars must be one of swarm, single, allreduce"),
        ({"allreduce__backend": "nccl"}, "allreduce.backend=nccl must be one of mpi, horovod"),
        ({"local_sgd__switch": 1.5}, "local_sgd.switch=1.5 must be from 0 to 1"),
        ({"train__slow_factors": (0.5,)}, "train.slow_factors=(0.5,) must be numbers of 1 or more"),
        ({"train__step_seconds": -1.0}, "train.step_seconds=-1.0 must be 0 or more"),
        ({"seed": -1}, "seed=-1 must be from 0 to 2147483647"),
        ({"model__name": ""}, "model.name= must be a name, not empty"),
        ({"data__data_dir": ""}, "data.data_dir= must be a directory, not empty"),
        ({"data__partition": "x"}, "data.partition=x must be one of iid, static, dirichlet"),
        ({"data__dirichlet_alpha": 0.0}, "data.dirichlet_alpha=0.0 must be above 0"),
        ({"data__image_size": 0}, "data.image_size=0 must be 1 or more"),
        ({"data__source": ""}, "data.source= must be a language such as en, or None"),
        ({"data__target": 7}, "data.target=7 must be a string or None"),
        ({"data__vocabulary_size": 0}, "data.vocabulary_size=0 must be 1 or more"),
        ({"data__max_length": 0}, "data.max_length=0 must be 1 or more"),
        ({"data__cache_dir": ""}, "data.cache_dir= must be a directory, not empty"),
        ({"train__epochs": math.nan}, "train.epochs=nan must be a finite number"),
        ({"train__epochs": math.inf}, "train.epochs=inf must be a finite number"),
        ({"train__max_steps": 0}, "train.max_steps=0 must be 1 or more"),
        ({"train__batch_size": 0}, "train.batch_size=0 must be 1 or more"),
        (
            {"train__mixed_precision": "bfloat16"},
            "train.mixed_precision=bfloat16 must be one of float32, mixed_bfloat16, mixed_float16",
        ),
        ({"train__threads": -1}, "train.threads=-1 must be 0 or more"),
        (
            {"optimizer__name": "lars"},
            "optimizer.name=lars must be one of sgd, momentum, adam, adamw",
        ),
        ({"optimizer__learning_rate": 0}, "optimizer.learning_rate=0 must be above 0"),
        ({"optimizer__momentum": 1.0}, "optimizer.momentum=1.0 must be at least 0 and below 1"),
        ({"optimizer__step_factor": 2.0}, "optimizer.step_factor=2.0 must be above 0"),
        ({"model__dropout": 1.0}, "model.dropout=1.0 must be at least 0 and below 1"),
        ({"model__normalization": "both"}, "model.normalization=both must be one of post, pre"),
        ({"model__memory_length": -1}, "model.memory_length=-1 must be 0 or more"),
        ({"data__train_examples": 0}, "data.train_examples=0 must be 1 or more"),
        ({"train__label_smoothing": 1.0}, "train.label_smoothing=1.0 must be at least 0"),
        ({"optimizer__step_boundaries": (0.75, 0.5)}, "must be ascending numbers between 0 and 1"),
        ({"optimizer__step_boundaries": (0.5, 1.0)}, "must be ascending numbers between 0 and 1"),
        ({"optimizer__step_boundaries": ("half",)}, "must be a tuple of numbers such as"),
    ],
)
def test_an_impossible_value_is_refused_in_one_line(overrides, line):
    with pytest.raises(UsageError) as refusal:
        validate(make(**overrides), 1)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "size", "line"),
    [
        ({"algorithm": "single"}, 4, "algorithm=single trains on one rank, but this run has 4"),
        ({"swarm__topology": "hypercube"}, 6, "swarm.topology=hypercube needs a power of two"),
        (
            {"algorithm": "dpsgd", "dpsgd__topology": "hypercube"},
            6,
            "dpsgd.topology=hypercube needs a power of two",
        ),
        (
            {"algorithm": "allreduce", "train__jit_compile": True},
            2,
            "train.jit_compile=True with algorithm=allreduce",
        ),
        (
            {"train__slow_factors": (1.0, 3.0), "train__jit_compile": True},
            2,
            "train.jit_compile=True with train.slow_factors=(1.0, 3.0)",
        ),
        (
            {"train__step_seconds": 0.1, "train__jit_compile": True},
            2,
            "train.jit_compile=True with train.step_seconds=0.1",
        ),
        (
            {"train__slow_factors": (1.0, 3.0)},
            4,
            "train.slow_factors=(1.0, 3.0) must have a factor for each rank, but this run has 4",
        ),
        (
            {"algorithm": "noloco", "swarm__average_optimizer": True},
            2,
            "swarm.average_optimizer=True has no effect on algorithm=noloco",
        ),
        ({"swarm__topology": "random_regular"}, 4, "degree=4 on 4 ranks does not exist"),
        (
            {"swarm__local_steps": 32, "swarm__max_staleness": 16},
            2,
            "swarm.max_staleness=16 must be at least swarm.local_steps=32",
        ),
        (
            {"swarm__local_steps": "auto", "swarm__mode": "blocking"},
            2,
            "swarm.local_steps=auto cannot be combined with swarm.mode=blocking",
        ),
        (
            {"swarm__local_steps": "auto", "swarm__local_steps_distribution": "geometric"},
            2,
            "swarm.local_steps=auto cannot be combined with swarm.local_steps_distribution=geo",
        ),
        ({"optimizer__schedule": "step"}, 1, "needs optimizer.step_boundaries"),
        ({"optimizer__nesterov": True, "optimizer__name": "adam"}, 1, "optimizer.nesterov=True"),
        ({"optimizer__nesterov": True, "optimizer__momentum": 0.0}, 1, "a momentum above 0"),
        (
            {"optimizer__warmup_epochs": 10.0, "train__epoch_multiplier": 2.0},
            1,
            "optimizer.warmup_epochs=10.0 must be below the 10 of train.epochs",
        ),
    ],
)
def test_an_impossible_combination_is_refused_in_one_line(overrides, size, line):
    with pytest.raises(UsageError) as refusal:
        validate(make(**overrides), size)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_key_with_a_choice_or_a_range_has_a_rule():
    """A new number or string needs a rule of what is allowed; only booleans need none."""
    for section in (c.RunConfig, *(f.type for f in dataclasses.fields(c.RunConfig))):
        if dataclasses.is_dataclass(section):
            for field in options.fields(section):
                free = field.metadata["rule"] is options.ANY
                assert free == (field.type is bool), field.name
                assert field.metadata["description"], field.name


def test_every_key_is_an_option():
    keys = c.flatten(c.to_dict(make()))
    assert [key.name for key in keys_of(make())] == list(keys)


def test_keys_of_another_task_must_keep_their_defaults():
    model = c.ModelConfig(name="resnet8", memory_length=4)
    options.check_unused(model, "model", "translation")
    with pytest.raises(UsageError) as refusal:
        options.check_unused(model, "model", "classification")
    line = "model.memory_length=4 has no effect on task=classification; leave it at 0"
    assert str(refusal.value) == line


def test_numpy_numbers_become_python_numbers():
    config = make(swarm__bits=np.int64(4), optimizer__learning_rate=np.float32(0.5))
    validate(config, 2)
    assert type(config.swarm.bits) is int
    assert config.optimizer.learning_rate == 0.5
    assert type(config.optimizer.learning_rate) is float
