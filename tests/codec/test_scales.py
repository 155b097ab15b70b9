"""Laws of the block scales: they follow the differences, recover from failures, stay bounded."""

import itertools

import numpy as np
import pytest
import reference

from swarm_tf.codec.scales import TAIL, BlockScales, out_of_range

BLOCKS = 8
"""Tests watch the first; the others are read, so that the chunk is not sent exactly."""

ONES, ZEROS = np.ones(BLOCKS, np.float32), np.zeros(BLOCKS, np.float32)
ALL = np.ones(BLOCKS, np.bool_)
ALL_BUT_ONE = np.arange(BLOCKS) > 0


def _ranges(scales, bits, magnitude=ZEROS):
    """The largest difference that the lattice can read: 2^(b-1) steps."""
    return scales.step_sizes(bits, magnitude).astype(np.float64) * 2 ** (bits - 1)


def _known(spread, exchanges=1):
    """Scales after exact exchanges that all saw this mean difference."""
    scales = BlockScales(BLOCKS)
    for _ in range(exchanges):
        scales.update_exact(ONES * np.float32(spread))
    return scales


def _succeed(scales, bits, spread):
    scales.update(bits, scales.step_sizes(bits, ZEROS), ALL, ONES * np.float32(spread))


def _fail(scales, bits, spread):
    """The first block is out of range; the others have the mean difference `spread`."""
    steps = scales.step_sizes(bits, ZEROS)
    scales.update(bits, steps, ALL_BUT_ONE, ONES * np.float32(spread))


def _exchange(scales, bits, differences, rng, magnitude=ONES):
    """One exchange over the lattice; returns which blocks were read.

    `differences` are those of the first block; those of the others are 1e-3.
    """
    steps = scales.step_sizes(bits, magnitude)
    all_blocks = np.full((BLOCKS, len(differences)), 1e-3)
    all_blocks[0] = differences
    points = np.floor(all_blocks / steps.astype(np.float64)[:, None] + rng.random(all_blocks.shape))
    points = np.abs(points)
    accepted = points.max(axis=1) <= 2 ** (bits - 1) - 1
    scales.update(bits, steps, accepted, (points.mean(axis=1) * steps).astype(np.float32))
    return accepted


def test_scales_are_unknown_until_an_exact_exchange():
    scales = BlockScales(BLOCKS)
    assert not scales.known
    scales.update_exact(ONES)
    assert scales.known


@pytest.mark.filterwarnings("error")
def test_scales_of_an_empty_chunk_are_known_after_one_exchange():
    scales = BlockScales(0)
    empty = np.zeros(0, np.float32)
    scales.update_exact(empty)
    scales.update(8, empty, np.zeros(0, np.bool_), empty)
    assert scales.known
    assert not out_of_range(np.zeros(0, np.bool_))
    assert scales.step_sizes(8, empty).shape == (0,)


def test_scales_are_known_after_serving_a_lattice_exchange():
    """A new node may serve an exchange before its first own one, and learns from it as well."""
    scales = BlockScales(BLOCKS)
    scales.update(8, ONES / 2, ALL_BUT_ONE, ONES / 10)
    assert scales.known
    assert (scales.step_sizes(8, ZEROS) > 0).all()


@pytest.mark.parametrize(
    ("failed", "is_out_of_range"), [(0, False), (3, False), (4, True), (8, True)]
)
def test_an_out_of_range_partner_lengthens_the_range_only_a_little(failed, is_out_of_range):
    accepted = np.arange(BLOCKS) >= failed
    assert out_of_range(accepted) == is_out_of_range
    for bits, factor in ((8, 2.0), (4, 1.2)):
        scales = _known(1e-3)
        before = scales.step_sizes(bits, ZEROS)
        scales.update(bits, before, accepted, ONES * np.float32(5e-3))
        expected = before * np.where(accepted, 1, factor)
        assert np.allclose(scales.step_sizes(bits, ZEROS), expected) == is_out_of_range


def test_scales_stay_unknown_after_a_first_request_out_of_range():
    scales = BlockScales(BLOCKS)
    scales.update(8, ONES, ~ALL, ONES)
    assert not scales.known


@pytest.mark.parametrize(("exchanges", "longest"), [(11, 1000), (12, 2), (30, 2)])
def test_an_exact_exchange_at_most_doubles_a_range(exchanges, longest):
    """The first twelve exchanges have no such limit."""
    scales = _known(1e-3, exchanges)
    before = _ranges(scales, 8)
    scales.update_exact(np.array([1.0, 1.5e-3, 2e-4, *[1e-3] * (BLOCKS - 3)], np.float32))
    factors = _ranges(scales, 8) / before
    np.testing.assert_allclose(factors[:4], [longest, 1.5, 0.2, 1], rtol=1e-5)


def test_a_range_of_zero_may_grow_by_any_factor():
    scales = _known(0, 30)
    scales.update_exact(ONES)
    np.testing.assert_allclose(_ranges(scales, 8), TAIL, rtol=1e-5)


def test_differences_that_are_not_finite_leave_finite_scales():
    scales = BlockScales(3)
    scales.update_exact(np.array([np.nan, np.inf, 1], np.float32))
    steps = scales.step_sizes(4, np.ones(3, np.float32))
    assert np.isfinite(steps).all()
    assert (steps > 0).all()


@pytest.mark.parametrize("bits", reference.LATTICE_BITS)
def test_the_first_range_is_ten_times_the_mean_difference(bits):
    np.testing.assert_allclose(_ranges(_known(1e-3), bits), TAIL * 1e-3, rtol=1e-5)


def test_every_block_learns_its_own_scale():
    scales = BlockScales(BLOCKS)
    scales.update_exact(np.arange(1, BLOCKS + 1, dtype=np.float32))
    before = _ranges(scales, 8)
    spread = np.where(np.arange(BLOCKS) < 4, 1, 100).astype(np.float32)
    scales.update(8, scales.step_sizes(8, ZEROS), ALL, spread)
    after = _ranges(scales, 8)
    np.testing.assert_allclose(after[:4] / before[:4], [0.98, 0.735, 0.6533, 0.6125], rtol=1e-3)
    assert (after[4:] > 5 * before[4:]).all()


@pytest.mark.parametrize("now", [1e-4, 4e-3])
def test_the_running_mean_follows_the_differences(now):
    """After fifteen exchanges the old mean hardly counts; the tail factor fell by 2 % each time."""
    scales = _known(1e-3)
    for _ in range(15):
        _succeed(scales, 8, now)
    np.testing.assert_allclose(_ranges(scales, 8), now * TAIL * 0.98**15, rtol=2e-3)


def test_without_failures_the_tail_factor_shrinks_to_a_limit():
    scales = _known(1e-3)
    for _ in range(300):
        _succeed(scales, 8, 1e-3)
    assert 5 <= _ranges(scales, 8)[0] / 1e-3 <= 8


@pytest.mark.parametrize("bits", reference.LATTICE_BITS)
def test_failures_grow_the_range_slowly_then_fast(bits):
    scales = _known(1e-3)
    ranges = [_ranges(scales, bits)[0]]
    for _ in range(8):
        _fail(scales, bits, 1e-3)
        ranges.append(_ranges(scales, bits)[0])
    growth = [after / before for before, after in itertools.pairwise(ranges)]
    np.testing.assert_allclose(growth, [1.5] * 3 + [4] * 5, rtol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_steps_stay_finite_however_often_a_block_fails(bits):
    """An infinite step times a difference of 0 is a NaN in the model."""
    scales = _known(1)
    for failures in range(300):
        steps = scales.step_sizes(bits, ONES)
        assert np.isfinite(steps).all(), f"after {failures} failures in a row"
        _fail(scales, bits, 1)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_step_is_never_below_the_precision_of_float32(bits):
    """Nor is it zero for a block of zeros."""
    scales = BlockScales(3)
    scales.update_exact(np.zeros(3, np.float32))
    steps = scales.step_sizes(bits, np.array([0, 1, 1000], np.float32))
    assert (steps >= np.array([2.0**-100, 2.0**-22, 1000 * 2.0**-22])).all()
    assert (steps[1:] <= np.array([1, 1000]) * 2.0**-20).all()


def _block_that_starts_to_differ(bits, size, magnitude=ONES):
    """Fifteen exchanges of a block without differences until now, in a chunk that has some.

    Of each: (range before, whether the block was read, range after).
    """
    scales = _known(1e-3)
    spread = np.where(ALL_BUT_ONE, np.float32(1e-3), np.float32(0))
    scales.update_exact(spread)
    rng = np.random.default_rng(1)
    return [
        (
            _ranges(scales, bits, magnitude)[0],
            _exchange(scales, bits, rng.normal(0, size, 1024), rng, magnitude)[0],
            _ranges(scales, bits, magnitude)[0],
        )
        for _ in range(15)
    ]


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.1, 1.0])
def test_a_block_that_starts_to_differ_is_read_within_fifteen_exchanges(bits, size):
    """The step grows from the precision of float32 to differences as large as the weights."""
    assert any(read for _, read, _ in _block_that_starts_to_differ(bits, size))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_a_range_stops_growing_once_the_block_is_read(bits, size):
    """It may still grow to the usual tail factor times the mean difference."""
    before, after = next((b, a) for b, read, a in _block_that_starts_to_differ(bits, size) if read)
    assert after <= max(1.01 * before, TAIL * 0.8 * size)


@pytest.mark.parametrize(("outlier", "share"), [(0.02, 0.7), (0.05, 0.7)])
def test_an_outlier_is_mostly_within_range_after_a_failure(outlier, share):
    """One difference is 20 or 50 times the mean: it is mostly read, and the range is bounded."""
    rng = np.random.default_rng(3)
    scales = _known(1e-3)
    differences = np.full(1024, 1e-3)
    differences[7] = outlier
    read, ranges = [], []
    for _ in range(200):
        read.append(_exchange(scales, 8, differences, rng)[0])
        ranges.append(_ranges(scales, 8)[0])
    assert np.mean(read) >= share
    assert max(ranges) <= 10 * outlier


@pytest.mark.parametrize("nonzero", [1, 64])
def test_a_block_with_few_nonzero_differences_is_read_at_times(nonzero):
    """Only one weight, or one row of an embedding, differs."""
    rng = np.random.default_rng(4)
    scales = _known(1e-3)
    differences = np.zeros(1024)
    differences[:nonzero] = rng.normal(0, 0.1, nonzero)
    read, ranges = [], []
    for _ in range(200):
        read.append(_exchange(scales, 8, differences, rng)[0])
        ranges.append(_ranges(scales, 8)[0])
    assert np.mean(read) >= 0.1
    assert max(ranges) <= 64 * np.abs(differences).max()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_steady_differences_keep_a_steady_range(bits):
    """The mean seen through a coarse lattice is unbiased, so the range does not drift."""
    rng = np.random.default_rng(bits)
    scales = _known(8e-4)
    ranges, read = [], []
    for _ in range(300):
        read.append(_exchange(scales, bits, rng.normal(0, 1e-3, 1024), rng)[0])
        ranges.append(_ranges(scales, bits)[0])
    assert np.mean(read) > (0.7 if bits == 2 else 0.85)
    assert 4 < np.median(ranges) / 8e-4 < 25
    assert max(ranges) < 30 * 8e-4
