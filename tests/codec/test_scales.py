"""Laws of the block scales: they learn, they wake up, and they never run away."""

import itertools

import numpy as np
import pytest
import reference

from swarm_tf.codec.scales import TAIL, BlockScales

ONE = np.ones(1, np.float32)
YES, NO = np.array([True]), np.array([False])


def _range(scales, bits, magnitude=ONE):
    """What the lattice can read, in weights: 2^(b-1) steps."""
    return float(scales.steps(bits, magnitude)[0]) * 2 ** (bits - 1)


def _exchange(scales, bits, differences, rng, magnitude=ONE):
    """One exchange over the lattice as both sides see it; True if the block was read."""
    steps = scales.steps(bits, magnitude)
    points = np.abs(np.floor(differences / float(steps[0]) + rng.random(len(differences))))
    accepted = np.array([points.max() <= 2 ** (bits - 1) - 1])
    scales.update(bits, steps, accepted, (points.mean() * steps).astype(np.float32))
    return bool(accepted[0])


def _after(bits, spread, failures=0, first=1e-3):
    """The range after one exact exchange, failures and successes that saw `spread`."""
    scales = BlockScales(1)
    scales.exact(ONE * np.float32(first))
    for _ in range(failures):
        scales.update(bits, scales.steps(bits, ONE), NO, ONE * 0)
    for one in spread:
        scales.update(bits, scales.steps(bits, ONE), YES, ONE * np.float32(one))
    return scales


def test_known_only_after_every_block_was_compared():
    scales = BlockScales(3)
    assert not scales.known
    scales.exact(np.full(3, 0.1, np.float32))
    assert scales.known
    assert BlockScales(0).known


def test_known_after_serving_over_the_lattice_of_another_node():
    """A fresh node may serve before it asks; what it saw is as good."""
    scales = BlockScales(2)
    used = np.full(2, 0.5, np.float32)
    scales.update(8, used, np.array([True, False]), np.full(2, 0.1, np.float32))
    assert scales.known
    assert (scales.steps(8, np.zeros(2, np.float32)) > 0).all()


def test_an_exchange_that_saw_nothing_finite_leaves_finite_scales():
    scales = BlockScales(3)
    scales.exact(np.array([np.nan, np.inf, 1], np.float32))
    steps = scales.steps(4, np.ones(3, np.float32))
    assert np.isfinite(steps).all()
    assert (steps > 0).all()


@pytest.mark.parametrize("bits", reference.LATTICE_BITS)
def test_the_first_range_is_ten_times_the_mean_difference(bits):
    assert _range(_after(bits, []), bits, ONE * 0) == pytest.approx(TAIL * 1e-3, rel=1e-5)


def test_blocks_learn_each_for_itself():
    scales = BlockScales(3)
    scales.exact(np.array([1, 2, 3], np.float32))
    scales.update(
        8,
        scales.steps(8, np.zeros(3, np.float32)),
        np.array([True, False, True]),
        np.array([1, 0, 1], np.float32),
    )
    steps = scales.steps(8, np.zeros(3, np.float32)) * 128 / 10
    np.testing.assert_allclose(steps, [1, 4, 2], rtol=1e-5)


def test_the_running_mean_learns():
    """After ten exchanges the past counts less than a part in a thousand."""
    scales = _after(8, [4e-3] * 10)
    assert _range(scales, 8) == pytest.approx(4e-2, rel=2e-3)
    scales = _after(8, [1e-4] * 20)
    assert _range(scales, 8) == pytest.approx(1e-3, rel=2e-3)


def test_failures_grow_2_4_16():
    ranges = [_range(_after(8, [], failures), 8) for failures in range(5)]
    growth = [after / before for before, after in itertools.pairwise(ranges)]
    np.testing.assert_allclose(growth, [2, 4, 16, 256], rtol=1e-4)


@pytest.mark.filterwarnings("error")
def test_steps_stay_finite_however_often_a_block_fails():
    """An infinite step times a difference of 0 is a NaN in the model."""
    scales = BlockScales(1)
    scales.exact(ONE)
    for failures in range(30):
        steps = scales.steps(2, ONE)
        assert np.isfinite(steps).all(), f"after {failures} failures in a row"
        scales.update(2, steps, NO, ONE * 0)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_step_is_never_below_the_digits_of_float32(bits):
    """Nor zero, where a block is all zeros."""
    scales = BlockScales(3)
    scales.exact(np.zeros(3, np.float32))
    steps = scales.steps(bits, np.array([0, 1, 1000], np.float32))
    assert (steps >= np.array([2.0**-100, 2.0**-22, 1000 * 2.0**-22])).all()
    assert (steps[1:] <= np.array([1, 1000]) * 2.0**-20).all()


@pytest.mark.parametrize("bits", reference.LATTICE_BITS)
@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.1, 1.0])
def test_a_sleeping_block_wakes_within_six_exchanges(bits, size):
    rng = np.random.default_rng(1)
    scales = BlockScales(1)
    scales.exact(np.zeros(1, np.float32))
    read = [_exchange(scales, bits, rng.normal(0, size, 1024), rng) for _ in range(6)]
    assert any(read)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_block_of_zeros_wakes_within_ten_exchanges(bits):
    rng = np.random.default_rng(1)
    scales = BlockScales(1)
    scales.exact(np.zeros(1, np.float32))
    read = [_exchange(scales, bits, rng.normal(0, 0.01, 1024), rng, ONE * 0) for _ in range(10)]
    assert any(read)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_once_read_again_the_range_does_not_grow_further(bits, size):
    """What could be read needs no larger range: the overshoot must count once, not twice."""
    rng = np.random.default_rng(2)
    scales = BlockScales(1)
    scales.exact(np.zeros(1, np.float32))
    for _ in range(10):
        reach = _range(scales, bits)
        if _exchange(scales, bits, rng.normal(0, size, 1024), rng):
            break
    assert _range(scales, bits) <= 1.5 * reach


def test_an_overshoot_is_forgotten_by_half_an_exchange():
    """After failures that went too far the range halves until the mean is met."""
    scales = _after(8, [], failures=4)
    before = _range(scales, 8)
    for count in range(1, 8):
        scales.update(8, scales.steps(8, ONE), YES, ONE * np.float32(1e-3))
        assert _range(scales, 8) == pytest.approx(before / 2**count + 10e-3 * (1 - 2.0**-count))


@pytest.mark.parametrize("outlier", [0.02, 0.1])
def test_a_block_with_an_outlier_is_still_read_and_keeps_its_range_bounded(outlier):
    """Differences of which one is 20 or 100 means: no starvation, no running away."""
    rng = np.random.default_rng(3)
    scales = BlockScales(1)
    scales.exact(ONE * np.float32(1e-3))
    differences = np.full(1024, 1e-3)
    differences[7] = outlier
    read, ranges = [], []
    for _ in range(200):
        read.append(_exchange(scales, 8, differences, rng))
        ranges.append(_range(scales, 8))
    assert np.mean(read) >= 0.25
    assert max(ranges) <= 20 * outlier


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_steady_differences_keep_a_steady_range(bits):
    """The mean of what a coarse lattice shows is unbiased: the range neither runs nor dies."""
    rng = np.random.default_rng(bits)
    scales = BlockScales(1)
    scales.exact(ONE * np.float32(8e-4))
    ranges, read = [], []
    for _ in range(300):
        read.append(_exchange(scales, bits, rng.normal(0, 1e-3, 1024), rng))
        ranges.append(_range(scales, bits))
    assert np.mean(read) > 0.97
    assert 4 < np.median(ranges) / 8e-4 < 25
    assert max(ranges) < 100 * 8e-4
