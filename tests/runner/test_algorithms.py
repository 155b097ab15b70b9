"""Which algorithm a configuration builds, and with which arguments."""

import re

import pytest

from swarm_tf import config
from swarm_tf.algorithm import Algorithm
from swarm_tf.errors import UsageError
from swarm_tf.runner import algorithms
from swarm_tf.runner.validation import validate


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


@pytest.mark.parametrize("name", config.algorithms())
def test_every_name_builds_its_class(name):
    settings = run_config(name, swarm=config.SwarmConfig(average_statistics=False))
    algorithm = algorithms.build(settings, 100)
    assert isinstance(algorithm, Algorithm)
    assert algorithm.name == name
    assert algorithm.settings["seed"] == 5
    assert algorithm.settings["average_statistics"] is False
    assert not algorithm.average_at_end


@pytest.mark.parametrize("name", config.algorithms())
def test_keys_and_arguments_have_the_same_defaults(name):
    """So `model.fit` and train.py train alike."""
    by_arguments = config.algorithms()[name]()
    by_keys = algorithms.build(run_config(name), 100)
    assert by_arguments.settings == by_keys.settings | {"seed": 0}


def test_slots_that_an_algorithm_keeps_local_are_not_averaged():
    settings = run_config("noloco", swarm=config.SwarmConfig(average_optimizer=True))
    line = "swarm.average_optimizer=True has no effect on algorithm=noloco; leave it at False"
    with pytest.raises(UsageError, match=re.escape(line)):
        validate(settings, 2)
    with pytest.raises(UsageError, match=re.escape(line)):
        config.algorithms()["noloco"](average_optimizer=True)


def test_local_sgd_switches_at_a_fraction_of_the_run():
    settings = run_config("local_sgd", local_sgd=config.LocalSGDConfig(switch=0.25))
    algorithm = algorithms.build(settings, 1000)
    assert algorithm.switch_step == 250
    assert algorithm.next_boundary(249) == 250
    assert algorithm.next_boundary(250) == 254
