"""Laws of the float codecs: float32 is exact, 16-bit floats are unbiased, nothing overflows."""

import numpy as np
import pytest
import reference
import tensorflow as tf
from reference import BLOCK

from swarm_tf import codec

SHORT = {"bfloat16": (7, -126), "float16": (10, -14)}  # fraction bits, exponent of the smallest
# bfloat16 has float16's code with other numbers.
EACH_SHORT = [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"]
EACH = ["float32", *EACH_SHORT]
BLOCKS = 120
NO_SCALES = np.zeros(0, np.float32)


def _encode(name, x, seed=1):
    return codec.build(name).encode((tf.constant(x, tf.float32),), seed, NO_SCALES)


def _wire(encoded, payload=None):
    """What the partner receives, without the fields that are not sent."""
    if payload is None:
        payload = np.asarray(encoded.payload)
    fields = encoded.codec, encoded.length, encoded.seed, encoded.scales, encoded.checksums
    return codec.Encoded(*fields, tf.constant(payload))


def _exchange(name, x_i, x_j, seed=1):
    """Accepted blocks and corrections of both sides."""
    one = codec.build(name)
    i, j = _encode(name, x_i, seed), _encode(name, x_j, seed)
    at_i, at_j = one.decode(i, _wire(j)), one.decode(j, _wire(i))
    c_i, c_j = (at.correction.numpy().reshape(-1)[: len(x_i)] for at in (at_i, at_j))
    return at_i.accepted, at_j.accepted, c_i, c_j


def _numbers(encoded):
    return np.asarray(encoded.payload).astype(np.float64)


def _bits(encoded):
    payload = np.asarray(encoded.payload)
    return payload.view(np.uint32 if payload.itemsize == 4 else np.uint16)


def _weights(rng, blocks=BLOCKS, sizes=(-6, 3)):
    """Random weights of many sizes and both signs."""
    x = rng.normal(0, 1, blocks * BLOCK) * 10 ** rng.uniform(*sizes, blocks * BLOCK)
    return x.astype(np.float32)


@pytest.mark.parametrize("length", [1, 1023, 1500])
def test_float32_is_sent_unchanged(length):
    x = np.random.default_rng(length).normal(0, 1, length).astype(np.float32)
    own = _encode("float32", x)
    np.testing.assert_array_equal(_numbers(own), reference.rows(x))
    assert own.payload_bytes == codec.blocks_of(length) * BLOCK * 4


def test_float32_corrections_are_exact():
    rng = np.random.default_rng(0)
    x_i, x_j = _weights(rng), _weights(rng)
    a_i, a_j, c_i, c_j = _exchange("float32", x_i, x_j)
    assert a_i.all()
    assert a_j.all()
    np.testing.assert_array_equal(c_i, x_j * np.float32(0.5) - x_i * np.float32(0.5))
    np.testing.assert_array_equal(c_i, -c_j)


def test_float32_corrections_of_huge_weights_do_not_overflow():
    x = np.full(BLOCK, 3.4e38, np.float32)
    accepted, _, c_i, _ = _exchange("float32", x, -x)
    assert accepted.all()
    np.testing.assert_array_equal(c_i, -x)


@pytest.mark.parametrize("name", EACH_SHORT)
def test_16_bit_floats_are_those_of_the_reference(name):
    """Weights are rounded down to the format's grid after the dither."""
    rng = np.random.default_rng(2)
    x, seed = _weights(rng), 2**61
    own = _encode(name, x, seed)
    points, unsure = reference.float_points(x, seed, *SHORT[name])
    assert unsure.mean() < 0.01
    np.testing.assert_array_equal(_numbers(own)[~unsure], points[~unsure])
    grid = reference.float_grid(x, *SHORT[name])
    assert (np.abs(_numbers(own) - points) <= grid).all()
    assert own.payload_bytes == BLOCKS * BLOCK * 2


@pytest.mark.parametrize("name", EACH)
def test_checksums_are_those_of_the_reference(name):
    own = _encode(name, _weights(np.random.default_rng(3)), 7)
    mixed = reference.mixed(_bits(own))
    np.testing.assert_array_equal(own.checksums, reference.checksums(mixed, 7))


@pytest.mark.parametrize("name", EACH)
def test_zeros_stay_zeros(name):
    """Biases start at zero, and the last block is padded with zeros."""
    own = _encode(name, np.array([0.0, -0.0, 1.0]))
    numbers = _numbers(own)[0]
    assert numbers[2] == 1
    np.testing.assert_array_equal(np.delete(numbers, 2), 0)


@pytest.mark.parametrize("name", EACH_SHORT)
def test_small_weights_stay_small(name):
    """Errors are at most one step of the format; denormals of float32 count as zeros."""
    x = (np.exp2(np.linspace(-149, -10, BLOCK)) * np.resize([1, -1], BLOCK)).astype(np.float32)
    error = np.abs(_numbers(_encode(name, x))[0] - x)
    assert (error <= np.maximum(reference.float_grid(x, *SHORT[name])[0], 2.0**-126)).all()


def test_large_weights_are_rounded_or_refused():
    """bfloat16, up to the largest float32: a block is right to one step, or not usable."""
    for size in (1e30, 1e38, 2.0**126, 1.69e38, 2.0**127, 2e38, 3e38, 3.38e38, 3.4e38):
        x = np.full(BLOCK, size, np.float32)
        for sign in (1, -1):
            own = _encode("bfloat16", x * np.float32(sign))
            error = np.abs(_numbers(own) - sign * float(x[0])).max()
            assert not own.usable[0] or error <= size * 2.0**-7, size


@pytest.mark.parametrize("name", EACH_SHORT)
def test_numbers_of_the_format_are_not_rounded(name):
    """They stay as they are, but for rounding of float32 at a dither of almost 1."""
    x = _numbers(_encode(name, _weights(np.random.default_rng(5))))
    moved = (_numbers(_encode(name, x.reshape(-1), seed=9)) != x).mean()
    assert moved < 2.0**-12


# Statistics over many dithers.

DITHERS = 4000


@pytest.mark.parametrize("name", EACH_SHORT)
def test_dithered_rounding_is_unbiased_and_of_least_variance(name):
    """E[number] = x within 5 standard errors; variance f (1 - f) grid^2, f the remainder."""
    rng = np.random.default_rng(6)
    x = _weights(rng, 1)
    read = np.concatenate(
        [_numbers(_encode(name, np.tile(x, DITHERS // 4), seed)) for seed in range(4)]
    )
    grid = reference.float_grid(x, *SHORT[name])[0]
    f = x / grid - np.floor(x / grid)
    error = np.sqrt(f * (1 - f) / DITHERS)
    off = np.abs((read - x).mean(axis=0)) / grid
    assert (off <= 5 * error + 3 / DITHERS).all()
    assert abs(((read - x) / grid).mean()) <= 5 * np.sqrt((error**2).sum()) / BLOCK + 2.0**-14
    variance = ((read - x) ** 2).mean(axis=0) / grid**2
    np.testing.assert_allclose(variance, f * (1 - f), atol=5 * 0.25 / np.sqrt(DITHERS) + 1e-3)


@pytest.mark.parametrize("name", EACH_SHORT)
def test_differences_below_a_step_are_unbiased(name):
    """E[2 correction] = x_j - x_i for differences of a hundredth of the format's step and more."""
    rng = np.random.default_rng(7)
    # Away from powers of two, where the step changes between the two.
    x_i = (rng.uniform(1.02, 1.98, BLOCK) * np.exp2(rng.integers(-9, 4, BLOCK))).astype(np.float32)
    grid = reference.float_grid(x_i, *SHORT[name])[0]
    x_j = (x_i + np.resize([0, 0.01, 0.1, 0.5, 0.99, -0.3], BLOCK) * grid).astype(np.float32)
    read = []
    for seed in range(4):
        quarter = DITHERS // 4
        _, _, c_i, c_j = _exchange(name, np.tile(x_i, quarter), np.tile(x_j, quarter), seed)
        np.testing.assert_array_equal(c_i, -c_j)
        read.append(2.0 * c_i.reshape(quarter, BLOCK))
    read, d = np.concatenate(read), x_j.astype(np.float64) - x_i
    assert (read[:, d == 0] == 0).all()
    share = np.abs(d) / grid
    error = np.sqrt(np.maximum(share * (1 - share), 0.25 / BLOCK) / DITHERS)
    assert (np.abs((read - d).mean(axis=0)) / grid <= 6 * error + 3 / DITHERS).all()


# What cannot be sent.


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_on_both_sides(name, bad):
    rng = np.random.default_rng(8)
    x_i, x_j = _weights(rng, 4), _weights(rng, 4)
    x_j[2 * BLOCK + 5] = bad
    x_i[3 * BLOCK :] = bad
    x_j[3 * BLOCK :] = bad
    a_i, a_j, c_i, c_j = _exchange(name, x_i, x_j)
    np.testing.assert_array_equal(a_i, [True, True, False, False])
    np.testing.assert_array_equal(a_j, a_i)
    np.testing.assert_array_equal(c_i, -c_j)
    assert not c_i[2 * BLOCK :].any()


@pytest.mark.parametrize("size", [65504.1, 65520.0, 7e4, 1e30])
def test_weights_beyond_float16_are_refused_on_both_sides(size):
    rng = np.random.default_rng(9)
    x_i, x_j = _weights(rng, 4), _weights(rng, 4)
    x_i[17], x_j[BLOCK + 17] = size, -size
    x_i[2 * BLOCK], x_j[2 * BLOCK] = size, size
    a_i, a_j, c_i, c_j = _exchange("float16", x_i, x_j)
    np.testing.assert_array_equal(a_i, [False, False, False, True])
    np.testing.assert_array_equal(a_j, a_i)
    np.testing.assert_array_equal(c_i, -c_j)
    assert np.isfinite(c_i).all()


def test_usable_float16_weights_never_become_infinite():
    """With every dither, for weights just below the largest float16."""
    x = np.full(BLOCKS * BLOCK, 65440, np.float32)
    for seed in range(3):
        own = _encode("float16", x, seed)
        assert own.usable.all()
        assert np.isfinite(_numbers(own)).all()


# All lengths and all kinds of damage.


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
    "length", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (1023, 2049, 200 * BLOCK - 7))]
)
def test_any_length_is_averaged(name, length):
    rng = np.random.default_rng(length)
    x_i, x_j = (rng.normal(1, 0.1, length).astype(np.float32) for _ in range(2))
    a_i, a_j, c_i, c_j = _exchange(name, x_i, x_j)
    assert a_i.all()
    assert a_j.all()
    assert c_i.shape == (length,)
    np.testing.assert_array_equal(c_i, -c_j)
    np.testing.assert_allclose(x_i + c_i, (x_i + x_j) / 2, atol=0.02)


@pytest.mark.parametrize("name", EACH)
def test_an_empty_vector_has_an_empty_payload(name):
    one = codec.build(name)
    own = _encode(name, np.zeros(0))
    decoded = one.decode(own, _wire(own))
    assert own.payload_bytes == 0
    assert own.checksums.shape == (1, 0)
    assert decoded.accepted.shape == decoded.spread.shape == (0,)
    assert decoded.correction.shape == (0, BLOCK)


@pytest.mark.parametrize("name", EACH)
def test_spread_is_the_mean_difference_of_the_real_weights(name):
    """The padding of the last block does not count."""
    rng = np.random.default_rng(11)
    x_i = rng.normal(0, 1, BLOCK + 10).astype(np.float32)
    one = codec.build(name)
    decoded = one.decode(_encode(name, x_i), _wire(_encode(name, x_i + np.float32(2))))
    np.testing.assert_allclose(decoded.spread, 2, rtol=0.01)


@pytest.mark.parametrize("name", EACH)
def test_a_correction_is_added_to_an_earlier_one(name):
    rng = np.random.default_rng(12)
    length = 2500
    x_i, x_j = (rng.normal(0, 1, length).astype(np.float32) for _ in range(2))
    onto = rng.normal(0, 1, (3, BLOCK)).astype(np.float32)
    one, allowed = codec.build(name), np.array([True, False, True])
    i, j = _encode(name, x_i), _wire(_encode(name, x_j))
    alone = one.decode(i, j, None, allowed).correction.numpy()
    both = one.decode(i, j, tf.constant(onto), allowed).correction.numpy()
    assert not alone[1].any()
    np.testing.assert_array_equal(both[1], onto[1])
    np.testing.assert_allclose(both, onto.astype(np.float64) + alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("damage", ["one bit", "one byte", "two bytes", "many", "shift", "zeros"])
def test_a_damaged_payload_is_never_accepted(name, damage):
    rng = np.random.default_rng(13)
    i, j = _encode(name, _weights(rng)), _encode(name, _weights(rng))
    sent = np.asarray(j.payload).view(np.uint8)
    arrived = sent.copy()
    count = {"one bit": 1, "one byte": 1, "two bytes": 2, "many": sent.shape[1] // 3}
    for row in range(0, BLOCKS, 2):
        if damage in count:
            at = rng.choice(sent.shape[1], count[damage], replace=False)
            flip = rng.integers(1, 256, len(at), np.uint8)
            arrived[row, at] ^= np.uint8(1) << np.uint8(flip % 8) if damage == "one bit" else flip
        else:
            arrived[row] = np.roll(sent[row], 4) if damage == "shift" else 0
    payload = np.asarray(j.payload)
    damaged = _wire(j, arrived.view(payload.dtype))
    accepted = codec.build(name).decode(i, damaged).accepted
    np.testing.assert_array_equal(accepted, (arrived == sent).all(axis=1))


@pytest.mark.parametrize("name", EACH)
def test_two_flipped_signs_are_detected(name):
    """The hardest damage for a sum mod 2^32: the highest bits of two numbers flip."""
    rng = np.random.default_rng(14)
    one, i = codec.build(name), _encode(name, _weights(rng))
    j = _encode(name, _weights(rng))
    payload = np.asarray(j.payload)
    top = np.array(2 ** (payload.itemsize * 8 - 1), _bits(j).dtype)
    for _ in range(50):
        bits = _bits(j).copy()
        where = np.argsort(rng.random((BLOCKS, BLOCK), np.float32), axis=1)[:, :2]
        np.put_along_axis(bits, where, np.take_along_axis(bits, where, axis=1) ^ top, axis=1)
        assert not one.decode(i, _wire(j, bits.view(payload.dtype))).accepted.any()
