"""Laws of what the codecs share: blocks, magnitudes, the dither and the checksum weights."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from swarm_tf import codec
from swarm_tf.codec import base
from swarm_tf.errors import UsageError


@pytest.mark.parametrize(
    ("length", "blocks"), [(0, 0), (1, 1), (1023, 1), (1024, 1), (1025, 2), (10**9, 976563)]
)
def test_blocks_hold_all_weights(length, blocks):
    assert base.blocks_of(length) == blocks


@pytest.mark.parametrize("length", [0, 1, 1024, 2500])
def test_magnitude_is_the_largest_absolute_weight_of_the_sum(length):
    rng = np.random.default_rng(length)
    x, y = (rng.normal(0, 3, length).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(codec.magnitude((tf.constant(x),)), reference.magnitude(x))
    together = codec.magnitude((tf.constant(x), tf.constant(y)))
    np.testing.assert_allclose(together, reference.magnitude(x + y), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 511, 1023, 1024, 2499])
def test_magnitude_shows_nan_and_inf_wherever_they_are(bad, at):
    x = np.random.default_rng(at).normal(0, 1, 2500).astype(np.float32)
    x[at] = bad
    finite = np.isfinite(codec.magnitude((tf.constant(x),)))
    np.testing.assert_array_equal(finite, np.arange(3) != at // 1024)


def test_magnitude_shows_a_nan_beside_an_inf():
    x = np.ones(1024, np.float32)
    x[3], x[700] = np.inf, np.nan
    assert np.isnan(codec.magnitude((tf.constant(x),)))[0]


def test_dither_keys_are_the_same_on_both_sides_and_differ_between_exchanges_and_blocks():
    keys = base.dither_keys(2**62, 1000)
    np.testing.assert_array_equal(keys, base.dither_keys(2**62, 1000))
    np.testing.assert_array_equal(keys[:10], base.dither_keys(2**62, 10))
    assert len(np.unique(keys)) == keys.size
    assert not np.isin(keys, base.dither_keys(2**62 - 1, 1000)).any()


def test_checksum_weights_are_odd_and_those_of_the_reference():
    keys = tf.constant(base.dither_keys(5, 20))
    for word in range(2):
        weights = base.checksum_weights(keys, word).numpy()
        assert (weights % 2 == 1).all()
        np.testing.assert_array_equal(weights, reference.checksum_weights(5, 20, word))


def test_no_two_checksum_weights_agree_where_small_errors_look():
    """An error is a multiple of 2^(b-1): +1 here and -1 there shows in the low 33 - b bits."""
    first, second = base.CHECKSUM_WEIGHTS.astype(np.int64)
    for bits in range(2, 9):
        assert len(np.unique(first % 2 ** (33 - bits))) == base.BLOCK, bits
    assert len(np.unique(first % 2**17 * 2**17 + second % 2**17)) == base.BLOCK


def test_sums_by_halving_lose_nothing():
    values = np.random.default_rng(0).integers(0, 2**32, (3, 1024), np.uint32)
    lanes = base.folded(tf.constant(values), 128).numpy()
    assert lanes.shape == (3, 128)
    np.testing.assert_array_equal(
        lanes.sum(axis=1, dtype=np.uint32), values.sum(axis=1, dtype=np.uint32)
    )


@pytest.mark.parametrize("length", [0, 1, 1024, 1500])
def test_in_blocks_fills_the_tail_with_zeros(length):
    x = np.arange(1, length + 1, dtype=np.float32)
    np.testing.assert_array_equal(base.in_blocks(tf.constant(x)), reference.rows(x))


def test_every_codec_says_who_it_is():
    """Wire ids differ, so that no message is read with another codec."""
    codecs = [codec.build("lattice", b) for b in reference.LATTICE_BITS]
    codecs += [codec.build(name) for name in ("float32", "bfloat16", "float16")]
    assert len({c.wire_id for c in codecs}) == len(codecs)
    assert all(0 < c.wire_id < 256 for c in codecs)  # a byte of the header; 0 means none


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 12, 15, 17, 32])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(UsageError, match=f"swarm.bits={bits}"):
        codec.build("lattice", bits)


def test_an_unknown_codec_is_refused():
    with pytest.raises(UsageError, match=r"swarm\.codec=int8"):
        codec.build("int8")


def test_a_question_has_no_payload_and_leaves_the_original_alone():
    x = tf.constant(np.linspace(-1, 1, 1024, dtype=np.float32))
    own = codec.build("lattice", 8).encode((x,), 3, np.float32([0.1]), np.float32([1]))
    question = own.question()
    assert question.payload_bytes == 0
    assert (question.seed, question.length, question.wire_id) == (3, 1024, own.wire_id)
    assert own.payload_bytes == 1024
