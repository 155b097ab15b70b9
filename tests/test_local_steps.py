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


def _auto(*, exposed, busy, step=0.01, steps=1, count=15, law=None):
    law = law or local_steps.Auto(exposed_target=0.01, cores=2.0)
    for _ in range(count):
        law.observe(local_steps.Cost(steps, step * steps, exposed, busy))
    return law


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("exposed", [0.0, 5e-5, 1.5e-4, 1.01e-3, 4e-3])
@pytest.mark.parametrize("busy", [0.0, 1e-3, 1.3e-2])
def test_auto_draws_the_fewest_steps_that_keep_both_limits(exposed, busy, steps):
    law = _auto(exposed=exposed, busy=busy, steps=steps)
    h = law.draw(np.random.default_rng(0))

    def keeps(h):
        share = busy / (h * 0.01) / 2.0
        return (
            exposed / (h * 0.01) <= 0.01 * 1.000001 and share <= local_steps.BUSY_SHARE * 1.000001
        )

    assert keeps(h)
    assert h == 1 or not keeps(h - 1)


def test_auto_begins_with_one_step_and_has_a_most():
    assert set(_draws(local_steps.Auto(0.01, 1.0), 3)) == {1}
    assert set(_draws(_auto(exposed=9.0, busy=0.0), 3)) == {64}


def test_auto_forgets_an_outlier_and_follows_a_new_load():
    law = _auto(exposed=5e-5, busy=0.0)
    _auto(exposed=0.5, busy=0.5, step=10.0, count=1, law=law)
    assert law.draw(np.random.default_rng(0)) == 1
    _auto(exposed=4e-4, busy=0.0, count=15, law=law)
    assert law.draw(np.random.default_rng(0)) == 4


def test_auto_leaves_the_generator_alone():
    rng = np.random.default_rng(0)
    _auto(exposed=1e-3, busy=0.0).draw(rng)
    assert rng.integers(1 << 30) == np.random.default_rng(0).integers(1 << 30)


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
