"""The examples run, and the one in NumPy does what the real protocol does."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from swarm_tf import codec as codecs
from tests.protocol.swarm import Swarm

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLES / "swarmsgd_in_numpy.py"))


@pytest.mark.parametrize("seed", range(3))
def test_swarmsgd_in_numpy_is_the_real_protocol(example, seed):
    """The same local steps, boundaries and pairs, in the same order: the same models."""
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
        real.ask(rank, partner)
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
