"""Which class a configuration names, and what it is given."""

import dataclasses
import inspect

import pytest

from swarm_tf import config
from swarm_tf.algorithm import Algorithm
from swarm_tf.runner import algorithms


def run_config(algorithm, **sections):
    return config.RunConfig(
        algorithm=algorithm,
        seed=5,
        model=config.ModelConfig(name="resnet8"),
        data=config.DataConfig(name="digits"),
        train=config.TrainConfig(epochs=1, batch_size=8),
        optimizer=config.OptimizerConfig(learning_rate=0.1),
        **sections,
    )


@pytest.mark.parametrize("name", config.ALGORITHMS)
def test_every_name_builds_its_class(name):
    settings = run_config(name, swarm=config.SwarmConfig(average_statistics=False))
    algorithm = algorithms.build(settings, 100)
    assert isinstance(algorithm, Algorithm)
    assert algorithm.name == name
    assert algorithm.settings["seed"] == 5
    assert algorithm.settings["average_statistics"] is False
    assert not algorithm.average_at_end


@pytest.mark.parametrize("name", [name for name in config.ALGORITHMS if name != "single"])
def test_defaults_of_keys_are_those_of_arguments(name):
    """Who trains with `model.fit` and who runs train.py gets the same."""
    cls = type(algorithms.build(run_config(name), 100))
    arguments = inspect.signature(cls.__init__).parameters
    for field in dataclasses.fields(getattr(run_config(name), name)):
        if field.name in arguments:
            assert field.default == arguments[field.name].default, field.name


def test_the_switch_is_a_fraction_of_the_run():
    settings = run_config("local_sgd", local_sgd=config.LocalSGDConfig(switch=0.25))
    algorithm = algorithms.build(settings, 1000)
    assert algorithm.switch_step == 250
    assert algorithm.next_boundary(249) == 250
    assert algorithm.next_boundary(250) == 254
