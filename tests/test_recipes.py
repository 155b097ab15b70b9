"""Every recipe says what it is, and is one that a run accepts."""

import importlib
from pathlib import Path

import pytest

import models
from swarm_tf import config as c
from swarm_tf import optimizers

RECIPES = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))


def load(recipe):
    return importlib.import_module(f"configs.{recipe}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_opens_with_what_a_reader_looks_for(recipe):
    text = load(recipe).__doc__
    lines = {line.split(":")[0] for line in text.splitlines()}
    assert {"Paper", "Run", "Hardware", "Metric"} <= lines
    assert lines & {"Minutes", "Hours"}
    assert f"--config=configs/{recipe}.py" in text


@pytest.mark.parametrize("algorithm", c.ALGORITHMS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_valid_with_either_algorithm(recipe, algorithm):
    config = load(recipe).get_config()
    config.algorithm = algorithm
    c.validate(config, 1 if algorithm == "single" else 8)
    assert config.model.name in models.NAMES


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_swarm_takes_the_schedule_of_the_sequential_recipe_stretched(recipe):
    """The rate at any fraction of the run is that of the sequential run at the same fraction."""
    config = load(recipe).get_config()
    per_epoch = 400

    def rates(algorithm):
        config.algorithm = algorithm
        steps = round(config.total_epochs * per_epoch)
        rate = optimizers.schedule(
            config.optimizer, steps=steps, steps_per_epoch=per_epoch * config.epoch_multiplier
        )
        shares = (0.01, 0.1, 0.32, 0.34, 0.49, 0.51, 0.7, 0.9)
        return [float(rate(int(share * steps)) if callable(rate) else rate) for share in shares]

    assert rates("swarm") == pytest.approx(rates("single"), rel=0.05)
