"""Every recipe documents itself, is valid, and trains."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

import models
from swarm_tf import config as c
from swarm_tf.runner import optimizers
from swarm_tf.runner.validation import validate
from testbed import tfds_standin

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def load(recipe):
    return importlib.import_module(f"configs.{recipe}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_opens_with_its_paper_command_hardware_and_metric(recipe):
    text = load(recipe).__doc__
    lines = {line.split(":")[0] for line in text.splitlines()}
    assert {"Paper", "Run", "Hardware", "Metric"} <= lines
    assert lines & {"Minutes", "Hours"}
    assert f"--config=configs/{recipe}.py" in text


@pytest.mark.parametrize("algorithm", c.algorithms())
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_valid_with_every_algorithm(recipe, algorithm):
    config = load(recipe).get_config()
    config.algorithm = algorithm
    validate(config, 1 if algorithm == "single" else 8)
    assert config.model.name in (*models.NAMES, *models.TRANSLATORS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_swarm_stretches_the_schedule_of_the_sequential_recipe(recipe):
    """The rate at any fraction of the run is that of the sequential run at the same fraction."""
    config = load(recipe).get_config()
    per_epoch = 4000

    def rates(algorithm):
        config.algorithm = algorithm
        steps = round(config.total_epochs * per_epoch)
        rate = optimizers.schedule(
            config.optimizer, steps=steps, steps_per_epoch=per_epoch * config.epoch_multiplier
        )
        shares = (0.01, 0.1, 0.32, 0.34, 0.49, 0.51, 0.7, 0.9)
        return [float(rate(int(share * steps)) if callable(rate) else rate) for share in shares]

    assert rates("swarm") == pytest.approx(rates("single"), rel=0.05)


# Stand-ins for the sets of the recipes: a few examples with the shapes of the real ones, or
# enough words for the real vocabulary.
STANDINS = {
    "cifar10": (tfds_standin.images((32, 32, 3), 10, id="x"), {"train": 40, "test": 10}),
    "cifar100": (
        tfds_standin.images((32, 32, 3), 100, id="x", coarse_label=0),
        {"train": 40, "test": 10},
    ),
    "fashion_mnist": (tfds_standin.images((28, 28, 1), 10), {"train": 40, "test": 10}),
    "imagenet2012": (
        tfds_standin.coloured((200, 500), file_name="x"),
        {"train": 40, "validation": 10},
    ),
    "wmt17_translate/de-en": (tfds_standin.random_words, {"train": 600, "test": 10}),
}


def prepare(name: str, data_dir: str) -> None:
    if name in STANDINS:
        tfds_standin.write(name, data_dir, *STANDINS[name])
    elif name == "libreoffice_help":  # which TFDS has no builder for
        features = tfds.features.Translation(("de", "en"))
        splits = {"train": 600, "test": 10}
        tfds_standin.write_own(name, data_dir, features, splits, tfds_standin.random_words)


def train(ranks: int, recipe: str, workdir: Path, *flags: str) -> dict:
    """The summary of a run."""
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "swarmrun", "-n", str(ranks), "train.py"),
            f"--config=configs/{recipe}.py",
            f"--workdir={workdir}",
            *flags,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_ranks_train_a_recipe_at_full_size(recipe, tmp_path):
    config = load(recipe).get_config()
    data_dir = str(tmp_path / "tfds")
    prepare(config.data.name, data_dir)
    translates = config.model.name in models.TRANSLATORS
    summary = train(
        2,
        recipe,
        tmp_path / "run",
        f"--config.data.data_dir={data_dir}",
        f"--config.train.batch_size={512 if translates else 8}",
        "--config.train.threads=1",
        "--config.train.max_steps=2",
        "--config.swarm.local_steps=1",
    )
    assert summary["local_steps_total"] == 4
    assert summary["exchanges"] >= 1
    assert summary["exchanges_failed"] == 0
    assert math.isfinite(summary["final"]["loss"])
    assert ("bleu" in summary["final"]) == translates
    assert (tmp_path / "run" / "consensus.weights.h5").exists()


@pytest.mark.slow
@pytest.mark.large
def test_a_swarm_learns_to_translate_numbers(tmp_path):
    """Of 500 numbers that were not trained on, more than 95 % are translated exactly."""
    summary = train(4, "number_words_transformer_xl", tmp_path / "run")
    assert summary["final"]["exact_match"] > 0.95
    assert summary["exchanges_failed"] == 0
