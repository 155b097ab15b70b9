"""Laws of H, the number of local steps between exchanges."""

import numpy as np
import pytest

from swarm_tf import local_steps
from swarm_tf.errors import UsageError


def _draws(law, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([law.draw(rng) for _ in range(count)])


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_fixed_is_always_the_same(steps):
    assert set(_draws(local_steps.Fixed(steps), 20)) == {steps}


def test_fixed_leaves_the_generator_alone():
    rng = np.random.default_rng(0)
    local_steps.Fixed(4).draw(rng)
    assert rng.integers(1 << 30) == np.random.default_rng(0).integers(1 << 30)


@pytest.mark.parametrize("mean", [1, 2, 4.5, 20])
def test_geometric_has_its_mean_variance_and_support(mean):
    draws = _draws(local_steps.Geometric(mean), 20_000)
    deviation = np.sqrt(mean * (mean - 1))
    assert draws.min() == 1
    assert abs(draws.mean() - mean) <= 5 * deviation / np.sqrt(len(draws))
    np.testing.assert_allclose(draws.std(), deviation, rtol=0.05)


def test_geometric_follows_the_seed():
    law = local_steps.Geometric(5)
    np.testing.assert_array_equal(_draws(law, 100, seed=7), _draws(law, 100, seed=7))
    assert (_draws(law, 100, seed=7) != _draws(law, 100, seed=8)).any()


def test_draws_are_plain_integers():
    for name in local_steps.DISTRIBUTIONS:
        assert type(local_steps.build(name, 3).draw(np.random.default_rng(0))) is int


def test_build_knows_every_distribution():
    assert local_steps.build("fixed", 4) == local_steps.Fixed(4)
    assert local_steps.build("geometric", 4) == local_steps.Geometric(4)


@pytest.mark.parametrize("name", local_steps.DISTRIBUTIONS)
@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_refused(name, steps):
    with pytest.raises(UsageError, match=f"^swarm.local_steps={steps} must be at least 1$"):
        local_steps.build(name, steps)


def test_unknown_distribution_is_refused():
    with pytest.raises(
        UsageError, match="distribution=poisson is unknown; use one of fixed, geometric"
    ):
        local_steps.build("poisson", 4)
