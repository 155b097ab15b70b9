"""The examples run on two ranks, and the one in NumPy does what the real protocol does."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from swarm_tf import codec as codecs
from tests.protocol.swarm import Swarm

EXAMPLES = Path(__file__).parent.parent / "examples"
SWARMRUN = str(Path(sys.executable).parent / "swarmrun")


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLES / "swarmsgd_in_numpy.py"))


@pytest.mark.parametrize("seed", range(3))
def test_swarmsgd_in_numpy_equals_the_real_protocol(example, seed):
    """The same local steps, boundaries and pairs in the same order give the same models."""
    real = Swarm(4, codecs.build("float32"), seed=seed)
    nodes = [example["Node"](np.concatenate(model).astype(np.float64)) for model in real.models]
    rng = np.random.default_rng(seed)
    for _ in range(60):
        rank = int(rng.integers(4))
        before = np.concatenate(real.models[rank]).astype(np.float64)
        real.train(rank, 0.01)
        moved = np.concatenate(real.models[rank]) - before
        nodes[rank].local_step(-moved, 1.0)
        real.apply(rank)
        nodes[rank].boundary()
        partner = int(rng.choice([other for other in range(4) if other != rank]))
        real.request(rank, partner)
        real.settle()
        example["exchange"](nodes[rank], nodes[partner])
    for rank, node in enumerate(nodes):
        real.apply(rank)
        node.boundary()
        np.testing.assert_allclose(np.concatenate(real.models[rank]), node.x, rtol=0, atol=1e-5)


def test_swarmsgd_in_numpy_finds_the_optimum(example):
    targets = np.random.default_rng(1).normal(size=(8, 500))
    for step_size in (None, 0.1):
        models = example["swarm"](targets, step_size=step_size)
        assert np.abs(models.mean(axis=0) - targets.mean(axis=0)).max() < 0.5
        assert models.std(axis=0).mean() < 0.5


# The README's example, which has its own test, is much like these, and so are many of the zoo.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pattern", "least"),
    [
        ("own_partners", r"rank 1: (\d+) exchanges", 5),
        ("image_classifier", r"mean of 2 models: ([\d.]+)%", 90),
        ("text_classifier", r"test accuracy: ([\d.]+)%", 90),
        ("fine_tuning", r"test accuracy: ([\d.]+)%", 80),
        ("variational_autoencoder", r"rank 1: .* -> [\d.]+, (\d+) exchanges", 5),
    ],
)
def test_an_example_trains_on_two_ranks(tmp_path, name, pattern, least):
    done = subprocess.run(
        [SWARMRUN, "-n", "2", str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env=os.environ | {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert float(re.search(pattern, done.stdout)[1]) >= least, done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= (80 if path.name == "swarmsgd_in_numpy.py" else 60)
    assert all(len(line) <= 100 for line in lines)
