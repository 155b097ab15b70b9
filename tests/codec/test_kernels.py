"""Laws of what the codecs share: blocks, magnitudes, the dither and the checksum weights."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from swarm_tf import codec
from swarm_tf.codec import CODECS, kernels
from swarm_tf.errors import UsageError


@pytest.mark.parametrize(
    ("length", "blocks"), [(0, 0), (1, 1), (1023, 1), (1024, 1), (1025, 2), (10**9, 976563)]
)
def test_blocks_hold_all_weights(length, blocks):
    assert kernels.blocks_of(length) == blocks


def _encoded(name, *vectors):
    scales = np.ones(kernels.blocks_of(len(vectors[0])), np.float32)
    return codec.build(name).encode([tf.constant(v) for v in vectors], 1, scales)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("length", [0, 1, 1024, 2500])
def test_magnitude_is_the_largest_absolute_weight_of_the_sum(name, length):
    rng = np.random.default_rng(length)
    x, y = (rng.normal(0, 3, length).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(_encoded(name, x).magnitude, reference.magnitude(x))
    together = _encoded(name, x, reference.rows(y)) if length else _encoded(name, x)
    np.testing.assert_allclose(together.magnitude, reference.magnitude(x + y), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 511, 1023, 1024, 2499])
@pytest.mark.parametrize("name", CODECS)
def test_nan_and_inf_are_detected_at_every_position(name, bad, at):
    x = np.random.default_rng(at).normal(0, 1, 2500).astype(np.float32)
    assert _encoded(name, x).finite
    x[at] = bad
    own = _encoded(name, x)
    assert not own.finite
    np.testing.assert_array_equal(np.isfinite(own.magnitude), np.arange(3) != at // 1024)


def test_the_magnitude_of_a_block_with_nan_and_inf_is_nan():
    x = np.ones(1024, np.float32)
    x[3], x[700] = np.inf, np.nan
    assert np.isnan(_encoded("lattice", x).magnitude[0])


def test_dither_keys_are_shared_and_differ_between_exchanges_and_blocks():
    def keys(seed):
        return kernels.dither_keys(seed, 1000)

    first = keys(2**62)
    np.testing.assert_array_equal(first, keys(2**62))
    assert len(np.unique(first)) == first.size
    assert not np.isin(first, keys(2**62 - 1)).any()


def test_checksum_weights_are_odd_and_those_of_the_reference():
    keys = kernels.dither_keys(5, 20)
    for word in range(2):
        weights = kernels.checksum_weights(keys, word).numpy()
        assert (weights % 2 == 1).all()
        np.testing.assert_array_equal(weights, reference.checksum_weights(5, 20, word))


def test_checksum_weights_differ_in_the_bits_that_detect_small_errors():
    """Errors are multiples of 2^(b-1): a pair of +1 and -1 shows in the low 33 - b bits."""
    first, second = kernels.CHECKSUM_WEIGHTS.astype(np.int64)
    for bits in range(2, 9):
        assert len(np.unique(first % 2 ** (33 - bits))) == kernels.BLOCK, bits
    assert len(np.unique(first % 2**17 * 2**17 + second % 2**17)) == kernels.BLOCK


def test_block_sums_are_exact():
    values = np.random.default_rng(0).integers(0, 2**32, (3, 1024), np.uint32)
    sums = tf.function(kernels.block_sums, jit_compile=True)(values)
    np.testing.assert_array_equal(sums, values.sum(axis=1, dtype=np.uint32))


@pytest.mark.parametrize("length", [0, 1, 1024, 1500])
def test_in_blocks_pads_the_last_block_with_zeros(length):
    x = np.arange(1, length + 1, dtype=np.float32)
    np.testing.assert_array_equal(kernels.in_blocks(tf.constant(x)), reference.rows(x))


def test_every_codec_has_its_own_name_on_the_wire():
    """Names differ, so that no message is decoded with another codec."""
    codecs = [codec.build("lattice", b) for b in reference.LATTICE_BITS]
    codecs += [codec.build(name) for name in CODECS if name != "lattice"]
    assert len({c.wire_name for c in codecs}) == len(codecs)
    assert all(0 < len(c.wire_name.encode("ascii")) <= codec.NAME_BYTES for c in codecs)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 12, 15, 17, 32])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(UsageError, match=f"swarm.bits={bits}"):
        codec.build("lattice", bits)


def test_an_unknown_codec_is_refused():
    with pytest.raises(UsageError, match=r"swarm\.codec=int8"):
        codec.build("int8")


def test_without_payload_leaves_the_original_unchanged():
    x = tf.constant(np.linspace(-1, 1, 1024, dtype=np.float32))
    own = codec.build("lattice", 8).encode((x,), 3, np.float32([0.1]))
    stripped = own.without_payload()
    assert stripped.payload_bytes == 0
    assert (stripped.seed, stripped.length, stripped.codec) == (3, 1024, own.codec)
    assert own.payload_bytes == 1024
