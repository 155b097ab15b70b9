"""The configuration of a run as plain values, and what is computed from it."""

import json

from swarm_tf import config as c


def make(**train):
    return c.RunConfig(
        model=c.ModelConfig(name="resnet8"),
        data=c.DataConfig(name="digits"),
        train=c.TrainConfig(epochs=10, batch_size=32, **train),
        optimizer=c.OptimizerConfig(learning_rate=0.1, step_boundaries=(0.5, 0.75)),
    )


def test_a_configuration_as_a_dictionary_survives_json():
    plain = c.to_dict(make())
    assert json.loads(json.dumps(plain)) == plain


def test_epochs_of_a_swarm_include_the_multiplier():
    config = make(epoch_multiplier=1.5)
    assert config.total_epochs == 15
    config.algorithm = "single"
    assert config.total_epochs == 10
