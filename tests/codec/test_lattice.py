"""Laws of the lattice: the reference's bytes, exact opposites, no bias, no block decoded wrong.

A block pair is *settled* if either both sides accept it and the correction is that of the true
lattice points, or both sides reject it. Every pair is settled: that is what the checksums are for.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import reference
import tensorflow as tf
from reference import BLOCK, LATTICE_BITS

from swarm_tf import codec

# One of each kind: packed in pieces (3), a byte (8), two bytes (16). The others are slow: each is
# compiled, and only its bytes differ, which one test compares for all.
QUICK_BITS = (3, 8, 16)
ALL_BITS = [
    pytest.param(bits, marks=[] if bits in QUICK_BITS else pytest.mark.slow)
    for bits in LATTICE_BITS
]
SOME_BITS = [pytest.param(2, marks=pytest.mark.slow), *QUICK_BITS]
ONE_KIND = [3, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (2, 8, 16))]
# They are slow, since every length is compiled.
SLOW_LENGTHS = [
    pytest.param(length, marks=pytest.mark.slow) for length in (5, 1023, 1500, 200 * BLOCK - 7)
]
BLOCKS = 120  # in most tests, since every new shape is compiled
WORDS = {bits: 2 if bits > 8 else 1 for bits in LATTICE_BITS}


def _encode(bits, x, scales, seed):
    return codec.build("lattice", bits).encode((tf.constant(x, tf.float32),), seed, scales)


def _wire(encoded, payload=None):
    """What the partner receives, without the fields that are not sent."""
    if payload is None:
        payload = np.asarray(encoded.payload)
    fields = encoded.codec, encoded.length, encoded.seed, encoded.scales, encoded.checksums
    return codec.Encoded(*fields, tf.constant(payload))


class Outcome(NamedTuple):
    """Both sides of an exchange: accepted [blocks], corrections [blocks, BLOCK]."""

    accepted_i: np.ndarray
    accepted_j: np.ndarray
    correction_i: np.ndarray
    correction_j: np.ndarray
    spread_i: np.ndarray
    spread_j: np.ndarray


def _exchange(bits, x_i, x_j, scales, seed):
    lattice = codec.build("lattice", bits)
    i, j = (_encode(bits, x, scales, seed) for x in (x_i, x_j))
    at_i, at_j = lattice.decode(i, _wire(j)), lattice.decode(j, _wire(i))
    return Outcome(
        at_i.accepted,
        at_j.accepted,
        at_i.correction.numpy(),
        at_j.correction.numpy(),
        at_i.spread,
        at_j.spread,
    )


def _powers(blocks, rng):
    return np.exp2(rng.integers(-20, 5, blocks)).astype(np.float32)


def _any_scales(blocks, rng):
    return np.exp(rng.uniform(-14, 3, blocks)).astype(np.float32)


def _flat(steps, scales):
    return (steps * scales.astype(np.float64)[:, None]).astype(np.float32).reshape(-1)


# Equal to the reference, bit for bit.


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("reach", [2**8, 2**21])
def test_payload_and_checksums_are_those_of_the_reference(bits, reach):
    rng = np.random.default_rng(bits)
    blocks, seed = BLOCKS, 2**61 + bits
    # Beyond 2^12 steps the division itself would move weights across a boundary.
    scales = (_any_scales if reach <= 2**12 else _powers)(blocks, rng)
    integers = rng.integers(-reach, reach, (blocks, BLOCK))
    least = 0.001 if reach <= 2**12 else 0.3
    fractions = rng.uniform(least, 1 - least, integers.shape)
    x = reference.vector_of(integers, fractions, scales, seed)
    points, unsure = reference.lattice_points(x, scales, seed, tolerance=0)
    assert reach > 2**12 or not unsure.any()
    np.testing.assert_array_equal(points, integers)

    own = _encode(bits, x, scales, seed)
    low = points % 2**bits
    payload = low.astype(np.uint16) if bits == 16 else reference.pack(low, bits)
    np.testing.assert_array_equal(np.asarray(own.payload), payload)
    np.testing.assert_array_equal(own.checksums, reference.checksums(points, seed, WORDS[bits]))
    assert own.usable.all()


@pytest.mark.parametrize("bits", SOME_BITS)
@pytest.mark.parametrize("length", [1, *SLOW_LENGTHS])
def test_the_padding_of_the_last_block_counts_as_zeros(bits, length):
    rng = np.random.default_rng(length)
    blocks = codec.blocks_of(length)
    scales, seed = _any_scales(blocks, rng), 99
    integers = rng.integers(-50, 50, (blocks, BLOCK))
    x = reference.vector_of(integers, 0.5, scales, seed)[:length]
    points, _ = reference.lattice_points(x, scales, seed)
    assert (points.reshape(-1)[length:] == 0).all()
    own = _encode(bits, x, scales, seed)
    low = points % 2**bits
    payload = low.astype(np.uint16) if bits == 16 else reference.pack(low, bits)
    np.testing.assert_array_equal(np.asarray(own.payload), payload)
    np.testing.assert_array_equal(own.checksums, reference.checksums(points, seed, WORDS[bits]))


@pytest.mark.parametrize("bits", LATTICE_BITS)
def test_the_payload_has_the_given_bits_per_weight(bits):
    for length in (0, 1025):
        own = _encode(bits, np.zeros(length), np.ones(codec.blocks_of(length), np.float32), 1)
        assert own.payload.shape[0] == codec.blocks_of(length)
        assert own.payload_bytes == codec.blocks_of(length) * BLOCK * bits // 8


@pytest.mark.parametrize("bits", ALL_BITS)
def test_corrections_are_half_the_lattice_difference_bit_for_bit(bits):
    """A correction is steps * s/2, rounded once; the spread is the mean absolute difference."""
    rng = np.random.default_rng(bits)
    blocks, seed, most = BLOCKS, 5, 2 ** (bits - 1) - 1
    scales = _any_scales(blocks, rng)
    k_i = rng.integers(-200, 200, (blocks, BLOCK))
    steps = rng.integers(-most, most + 1, k_i.shape)
    x_i, x_j = (reference.vector_of(k, 0.5, scales, seed) for k in (k_i, k_i + steps))
    got = _exchange(bits, x_i, x_j, scales, seed)
    expected = steps.astype(np.float32) * (scales * np.float32(0.5))[:, None]
    assert got.accepted_i.all()
    assert got.accepted_j.all()
    np.testing.assert_array_equal(got.correction_i, expected)
    np.testing.assert_array_equal(got.correction_j, -expected)
    mean = np.abs(steps).mean(axis=1) * scales
    np.testing.assert_allclose(got.spread_i, mean, rtol=1e-5)
    np.testing.assert_array_equal(got.spread_i, got.spread_j)


@pytest.mark.parametrize("bits", ONE_KIND)
def test_a_correction_is_added_to_an_earlier_one(bits):
    """Only accepted blocks change, with at most one more rounding."""
    rng = np.random.default_rng(bits)
    length, seed = 2500, 6
    scales = _any_scales(3, rng)
    x_i = _flat(rng.normal(0, 50, (3, BLOCK)), scales)[:length]
    x_j = x_i + _flat(rng.uniform(-0.9, 0.9, (3, BLOCK)), scales)[:length]
    lattice = codec.build("lattice", bits)
    i, j = (_encode(bits, x, scales, seed) for x in (x_i, x_j))
    onto = rng.normal(0, 1, (3, BLOCK)).astype(np.float32)
    allowed = np.array([True, False, True])
    alone = lattice.decode(i, _wire(j), None, allowed).correction.numpy()
    both = lattice.decode(i, _wire(j), tf.constant(onto), allowed).correction.numpy()
    assert alone.any()
    assert not alone[1].any()
    np.testing.assert_array_equal(both[1], onto[1])
    np.testing.assert_allclose(both, onto.astype(np.float64) + alone, rtol=1e-6, atol=1e-7)


def test_the_sum_of_the_terms_is_encoded():
    rng = np.random.default_rng(1)
    scales, seed = np.full(3, 0.25, np.float32), 8
    integers = rng.integers(-50, 50, (3, BLOCK))
    x = reference.vector_of(integers, 0.5, scales, seed)
    parts = [rng.normal(0, 3, len(x)).astype(np.float32) for _ in range(2)]
    terms = [tf.constant(v) for v in (x - parts[0] - parts[1], *parts)]
    own = codec.build("lattice", 8).encode(terms, seed, scales)
    np.testing.assert_array_equal(own.checksums, _encode(8, x, scales, seed).checksums)


# Statistics over many dithers.

DITHERS = 4000


def _over_dithers(bits, scale, x_i, x_j):
    """The decoded differences, 2 * correction, of [BLOCK] pairs under 4,000 dithers; float64."""
    quarter = DITHERS // 4
    read = []
    for seed in range(4):
        scales = np.full(quarter, scale, np.float32)
        got = _exchange(bits, np.tile(x_i, quarter), np.tile(x_j, quarter), scales, seed)
        assert got.accepted_i.all()
        np.testing.assert_array_equal(got.correction_i, -got.correction_j)
        read.append(2 * got.correction_i.astype(np.float64))
    return np.concatenate(read)


def _pairs(bits, scale, sizes, rng):
    x_i = rng.normal(0, 30 * scale, BLOCK).astype(np.float32)
    d = np.resize(np.concatenate([sizes, -np.asarray(sizes)]), BLOCK) * scale
    x_j = (x_i + d).astype(np.float32)
    return x_i, x_j, x_j.astype(np.float64) - x_i


@pytest.mark.parametrize("bits", ONE_KIND)
def test_the_decoded_difference_is_unbiased(bits):
    """E[2 correction] = x_j - x_i within 5 standard errors, from 0 to the end of the range."""
    rng = np.random.default_rng(bits)
    scale, most = 0.003, 2 ** (bits - 1) - 1
    sizes = np.array([0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1, 1.5, most / 2 + 0.2, most - 0.3])
    x_i, x_j, d = _pairs(bits, scale, sizes[sizes < most], rng)
    read = _over_dithers(bits, scale, x_i, x_j)
    up = d / scale - np.floor(d / scale)
    error = scale * np.sqrt(up * (1 - up) / DITHERS)
    off = np.abs(read.mean(axis=0) - d)
    # Where float32 rounding alone decides, one or two of the 4,000 may be a step off.
    assert (off <= 5 * error + scale * 2 / DITHERS).all()
    # All of them together: 1,024 coordinates, each with its own difference.
    assert abs((read.mean(axis=0) - d).sum()) <= 5 * np.sqrt((error**2).sum()) + scale * 2.0**-7


@pytest.mark.parametrize("bits", SOME_BITS)
def test_the_variance_of_the_decoded_difference_vanishes_with_it(bits):
    """Var[2 correction] <= |d| (s - |d|) for |d| < s; that of the correction is a quarter."""
    rng = np.random.default_rng(bits)
    scale = 0.003
    sizes = [0, 1e-3, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98]
    x_i, x_j, d = _pairs(bits, scale, sizes, rng)
    read = _over_dithers(bits, scale, x_i, x_j)
    bound = np.abs(d) * np.maximum(scale - np.abs(d), 0)
    share = np.clip(np.abs(d) / scale, 0, 1)
    fourth = bound * scale**2 * (1 - 3 * share * (1 - share))  # of a variable that is 0 or s
    error = np.sqrt(np.maximum(fourth - bound**2, 0) / DITHERS)
    slack = 5 * error + 10 * scale**2 / DITHERS  # few dithers matter for tiny differences
    variance = ((read - d) ** 2).mean(axis=0)
    assert (variance <= bound + slack).all()
    assert variance.sum() <= bound.sum() + 5 * np.sqrt((error**2).sum()) + scale**2 * 0.01
    assert (read[:, x_i == x_j] == 0).all()


def test_pairs_of_coordinates_are_uncorrelated():
    """Neighbouring and distant coordinates: no pair of 65,000 is beyond 5.2 standard errors."""
    rng = np.random.default_rng(0)
    scale = 0.003
    x_i, x_j, d = _pairs(8, scale, rng.uniform(0.2, 0.8, 512), rng)
    error = _over_dithers(8, scale, x_i, x_j) - d
    for some in (error[:, :256], error[:, ::4]):
        correlation = np.corrcoef(some, rowvar=False)
        np.fill_diagonal(correlation, 0)
        assert np.abs(correlation).max() * np.sqrt(DITHERS) < 5.2


def test_an_exchange_preserves_the_mean_and_brings_models_together():
    rng = np.random.default_rng(4)
    scales = np.full(50, 1e-4, np.float32)
    x_i = rng.normal(0, 0.01, 50 * BLOCK).astype(np.float32)
    x_j = (x_i + rng.normal(0, 1e-3, len(x_i))).astype(np.float32)
    got = _exchange(8, x_i, x_j, scales, 3)
    after_i = x_i.astype(np.float64) + got.correction_i.reshape(-1)
    after_j = x_j.astype(np.float64) + got.correction_j.reshape(-1)
    np.testing.assert_array_equal(after_i + after_j, x_i.astype(np.float64) + x_j)
    assert np.abs(after_i - after_j).max() <= 1.01e-4


# Every block that is decoded wrong is detected: more than 15,000 pairs over all bits.


def _check_settled(bits, x_i, x_j, scales, seed):
    """Asserts that every pair of blocks is settled; returns which blocks were averaged.

    The true lattice points are the reference's, in float64; one step of error is
    allowed where float32 may be a step off.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        got = _exchange(bits, x_i, x_j, scales, seed)
    np.testing.assert_array_equal(got.accepted_i, got.accepted_j)
    np.testing.assert_array_equal(got.correction_i, -got.correction_j)
    accepted = got.accepted_i
    assert not got.correction_i[~accepted].any()
    assert np.isfinite(got.correction_i).all()

    with np.errstate(invalid="ignore", over="ignore"):
        size = np.maximum(reference.magnitude(x_i), reference.magnitude(x_j))
        in_reach = size <= scales.astype(np.float64) * 2.0**22
        inside = np.repeat(in_reach, BLOCK)[: len(x_i)]
        k_i, unsure_i = reference.lattice_points(np.where(inside, x_i, 0), scales, seed)
        k_j, unsure_j = reference.lattice_points(np.where(inside, x_j, 0), scales, seed)
    assert not (accepted & ~in_reach).any(), "accepted beyond 2^22 steps, or a NaN"
    allowed = unsure_i.astype(int) + unsure_j
    true = k_j - k_i
    half = scales.astype(np.float64)[:, None] / 2
    read = np.rint(got.correction_i / half)
    wrong = (np.abs(read - true) > allowed).any(axis=1)
    assert not (accepted & wrong).any(), (
        f"{(accepted & wrong).sum()} of {len(accepted)} decoded wrong"
    )
    # No block is refused without a reason.
    near = (np.abs(true) + allowed <= 2 ** (bits - 1) - 1).all(axis=1)
    assert accepted[in_reach & near].all()
    return accepted


def _sure_pair(integers, steps, scales, seed):
    """Two vectors, `steps` apart, whose lattice points no rounding can change."""
    return [reference.vector_of(k, 0.5, scales, seed) for k in (integers, integers + steps)]


def _scatter(rng, blocks, patterns, spacing=1):
    """int64 [blocks, BLOCK]: in each block one of the patterns somewhere, 0 elsewhere."""
    steps = np.zeros((blocks, BLOCK), np.int64)
    for row, n in zip(steps, rng.integers(0, len(patterns), blocks), strict=True):
        pattern = patterns[n]
        start = rng.integers(0, BLOCK - spacing * len(pattern))
        row[start : start + spacing * len(pattern) : spacing] = pattern
    return steps


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("share", [0.1, 0.5, 1, 2, 10, 1e4])
def test_random_differences_are_settled(bits, share):
    """Gaussian differences whose deviation is `share` of the range."""
    rng = np.random.default_rng(bits)
    scales = _any_scales(BLOCKS, rng)
    x_i = rng.normal(0, 100, (BLOCKS, BLOCK))
    x_j = x_i + rng.normal(0, share * 2 ** (bits - 1), x_i.shape)
    accepted = _check_settled(bits, _flat(x_i, scales), _flat(x_j, scales), scales, 17)
    assert share < 1 or not accepted.any()


BALANCED = [(1, -1), (1, 1), (1, -2, 1), (-1, 2, -1), (1, -1, -1, 1), (1, -3, 3, -1), (2, -1, -1)]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("spacing", [1, 7, 128])
def test_sign_balanced_errors_are_settled(bits, spacing):
    """Errors are multiples of 2^b that cancel in a plain sum, or in one linear in the position."""
    rng = np.random.default_rng(bits)
    blocks, seed = BLOCKS, 23
    scales = _powers(blocks, rng)
    steps = _scatter(rng, blocks, BALANCED, spacing) * 2**bits
    noise = rng.integers(-1, 2, steps.shape) if bits > 2 else 0
    pair = _sure_pair(rng.integers(-99, 99, steps.shape), steps + noise, scales, seed)
    assert not _check_settled(bits, *pair, scales, seed).any()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_differences_at_the_end_of_the_range_are_settled(bits):
    """+-(2^(b-1) - 1) steps are decoded; +-2^(b-1) steps, alone or in pairs, are refused."""
    rng = np.random.default_rng(bits)
    half, blocks, seed = 2 ** (bits - 1), BLOCKS, 29
    scales = _any_scales(blocks, rng)
    integers = rng.integers(-99, 99, (blocks, BLOCK))
    inside = rng.choice([1 - half, half - 1], integers.shape)
    assert _check_settled(bits, *_sure_pair(integers, inside, scales, seed), scales, seed).all()
    beyond = _scatter(rng, blocks, [(1,), (-1,), *BALANCED, (1, -1) * 50, (1,) * 64, (1,) * 500])
    pair = _sure_pair(integers, beyond * half, scales, seed)
    assert not _check_settled(bits, *pair, scales, seed).any()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_huge_differences_are_settled(bits):
    """One weight, a few or all weights are up to 2^22 steps apart."""
    rng = np.random.default_rng(bits)
    blocks, seed = BLOCKS, 31
    scales = _powers(blocks, rng)
    huge = np.rint(np.exp2(rng.uniform(bits, 21, (blocks, BLOCK)))).astype(np.int64)
    huge *= rng.choice([-1, 1], huge.shape)
    share = rng.choice([1 / BLOCK, 0.01, 1], (blocks, 1))
    steps = np.where(rng.random(huge.shape) < share, huge, 0)
    pair = _sure_pair(rng.integers(-(2**20), 2**20, huge.shape), steps, scales, seed)
    accepted = _check_settled(bits, *pair, scales, seed)
    assert not accepted[(np.abs(steps) >= 2 ** (bits - 1)).any(axis=1)].any()


@pytest.mark.parametrize("bits", SOME_BITS)
@pytest.mark.parametrize("exponent", [16, 21])
def test_power_of_two_differences_that_cancel_are_settled(bits, exponent):
    """Two weights differ by exactly +-2^e steps, as clipped weights do when they change sign.

    That is likely where the step is a power of two, as the smallest step is for a largest weight
    of 1.0. Only the low 32 - e bits of the two checksum weights can detect it.
    """
    rng = np.random.default_rng(exponent)
    blocks, seed = 1000, 37
    scales = np.full(blocks, 2.0**-21, np.float32)
    steps = np.zeros((blocks, BLOCK), np.int64)
    where = np.argsort(rng.random(steps.shape), axis=1)[:, :2]
    np.put_along_axis(steps, where, 2**exponent * np.array([[1, -1]]), axis=1)
    pair = _sure_pair(np.zeros_like(steps), steps, scales, seed)
    _check_settled(bits, *pair, scales, seed)


BAD = [np.nan, -np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("sides", ["i", "j", "ij"])
def test_nan_inf_and_overflows_are_refused_on_both_sides(bits, sides):
    rng = np.random.default_rng(bits)
    blocks, seed = BLOCKS, 41
    scales = _any_scales(blocks, rng)
    x = rng.normal(0, 10, (blocks, BLOCK))
    pair = {"i": _flat(x, scales), "j": _flat(x, scales)}
    rows = np.arange(0, blocks, 2)
    for side in sides:
        where = rows * BLOCK + rng.integers(0, BLOCK, len(rows))
        pair[side][where] = np.resize(BAD, len(rows)).astype(np.float32)
    accepted = _check_settled(bits, pair["i"], pair["j"], scales, seed)
    np.testing.assert_array_equal(accepted, np.arange(blocks) % 2 == 1)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_values_around_and_above_2_to_the_22_steps_are_settled(bits):
    """At the largest integers of the kernel: on both sides, on one side, equal and opposite."""
    rng = np.random.default_rng(bits)
    blocks, seed = BLOCKS, 43
    scales = _any_scales(blocks, rng)
    size = 2.0**22 * np.exp2(rng.uniform(-1, 6, (blocks, 1)))
    x_i = rng.normal(0, 100, (blocks, BLOCK))
    x_j = x_i + rng.uniform(-0.4, 0.4, x_i.shape)
    columns = rng.integers(0, BLOCK, (blocks, 1))
    which = np.arange(blocks)[:, None] % 4
    for x, here in ((x_i, which != 1), (x_j, which != 0)):
        value = np.where((which == 3) & (x is x_j), -size, size)
        old = np.take_along_axis(x, columns, axis=1)
        np.put_along_axis(x, columns, np.where(here, value, old), axis=1)
    accepted = _check_settled(bits, _flat(x_i, scales), _flat(x_j, scales), scales, seed)
    assert not accepted[(size > 1.001 * 2**22)[:, 0]].any()


@pytest.mark.parametrize("bits", SOME_BITS)
def test_blocks_of_zeros_and_denormals_are_averaged_as_zeros(bits):
    rng = np.random.default_rng(bits)
    x_i = np.zeros(4 * BLOCK, np.float32)
    x_j = x_i.copy()
    x_j[:BLOCK] = rng.uniform(-1, 1, BLOCK) * 2.0**-130
    x_i[BLOCK : 2 * BLOCK] = 2.0**-149
    scales = np.array([2.0**-100, 2.0**-100, 2.0**-100, 1], np.float32)
    assert _check_settled(bits, x_i, x_j, scales, 47).all()


@pytest.mark.parametrize("bits", SOME_BITS)
@pytest.mark.parametrize("length", [2049, pytest.param(1, marks=pytest.mark.slow), *SLOW_LENGTHS])
def test_any_length_is_settled(bits, length):
    """Lengths are no multiple of a block; differences are within range, then out of range."""
    rng = np.random.default_rng(length)
    blocks = codec.blocks_of(length)
    scales = _any_scales(blocks, rng)
    x = rng.normal(0, 20, (blocks, BLOCK))
    for seed, distance in enumerate([0.5] * 10 + [3, 2 ** (bits - 1), 2**bits, 2**20] * 3):
        y = x + rng.uniform(-distance, distance, x.shape)
        accepted = _check_settled(
            bits, _flat(x, scales)[:length], _flat(y, scales)[:length], scales, seed
        )
        assert distance > 0.5 or accepted.all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_an_empty_vector_has_an_empty_payload(bits):
    lattice = codec.build("lattice", bits)
    own = _encode(bits, np.zeros(0), np.zeros(0, np.float32), 1)
    decoded = lattice.decode(own, _wire(own))
    assert own.payload_bytes == 0
    assert own.checksums.shape == (WORDS[bits], 0)
    assert decoded.accepted.shape == decoded.spread.shape == (0,)
    assert decoded.correction.shape == (0, BLOCK)


# Damage in transit.


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("damage", ["one bit", "one byte", "two bytes", "many", "shift", "zeros"])
def test_a_damaged_payload_is_never_decoded_wrong(bits, damage):
    """A block whose bytes changed is refused or decoded correctly; all others are accepted."""
    rng = np.random.default_rng(bits)
    blocks, seed = BLOCKS, 53
    scales = _any_scales(blocks, rng)
    x_i = rng.normal(0, 100, (blocks, BLOCK))
    x_j = x_i + rng.uniform(-0.9, 0.9, x_i.shape)
    i, j = (_encode(bits, _flat(x, scales), scales, seed) for x in (x_i, x_j))
    sent = np.asarray(j.payload).view(np.uint8)
    arrived = sent.copy()
    hit = np.arange(0, blocks, 2)
    count = {"one bit": 1, "one byte": 1, "two bytes": 2, "many": sent.shape[1] // 3}
    if damage in count:
        for row in hit:
            at = rng.choice(sent.shape[1], count[damage], replace=False)
            flip = rng.integers(1, 256, len(at), np.uint8)
            arrived[row, at] ^= np.uint8(1) << np.uint8(flip % 8) if damage == "one bit" else flip
    else:
        arrived[hit] = np.roll(sent[hit], 1, axis=1) if damage == "shift" else 0
    lattice = codec.build("lattice", bits)
    dtype = np.uint16 if bits == 16 else np.uint8
    damaged = _wire(j, arrived.view(dtype))
    decoded = lattice.decode(i, damaged)
    accepted = decoded.accepted
    assert accepted[(arrived == sent).all(axis=1)].all()
    # The code -2^(b-1) is decoded as 0, which is right where the difference was 0.
    truth = lattice.decode(i, _wire(j), None, accepted).correction
    np.testing.assert_array_equal(decoded.correction, truth)
    assert accepted[hit].mean() < 0.3


@pytest.mark.parametrize("bits", SOME_BITS)
def test_damaged_checksums_are_refused(bits):
    rng = np.random.default_rng(bits)
    scales = _any_scales(50, rng)
    own = _encode(bits, _flat(rng.normal(0, 100, (50, BLOCK)), scales), scales, 59)
    sums = own.checksums.copy()
    sums[0, ::2] ^= np.uint32(1) << rng.integers(0, 32, 25).astype(np.uint32)
    damaged = dataclasses.replace(_wire(own), checksums=sums)
    accepted = codec.build("lattice", bits).decode(own, damaged).accepted
    np.testing.assert_array_equal(accepted, np.arange(50) % 2 == 1)


@pytest.mark.parametrize("bits", SOME_BITS)
def test_another_dither_is_refused(bits):
    """A reply of another exchange has another seed, so its checksums differ."""
    rng = np.random.default_rng(bits)
    scales = np.full(50, 1.0, np.float32)
    x = _flat(rng.normal(0, 100, (50, BLOCK)), scales)
    own, other = _encode(bits, x, scales, 61), _encode(bits, x, scales, 62)
    assert not codec.build("lattice", bits).decode(own, _wire(other)).accepted.any()
