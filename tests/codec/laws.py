"""The laws that every codec must obey; `check` tests a codec of your own."""

import numpy as np
import tensorflow as tf

from swarm_tf.codec import BLOCK, Encoded, blocks_of
from swarm_tf.protocol import wire
from swarm_tf.protocol.messages import Kind, Message

LENGTH = 3 * BLOCK + 17


def check(codec):
    """Tests all laws, on models as a swarm has them."""
    for law in LAWS:
        law(codec)


def encoded(codec, x, seed=5):
    """One side's weights, with step sizes whose range holds the differences of `models`."""
    scales = np.full(blocks_of(len(x)), 2.0**-codec.bits, np.float32)
    return codec.encode((tf.constant(x, tf.float32),), seed, scales)


def received(one):
    """`one` as the partner receives it over the wire."""
    accepted = np.ones(one.checksums.shape[1], np.bool_)
    head, payload = wire.pack(Message(Kind.REPLY, 1, 2, encoded=one, accepted=accepted), 7)
    message, _ = wire.unpack(head, 7)
    return wire.attach(message, payload.copy()).encoded


def models(length=LENGTH, distance=0.01):
    """The weights of two partners, about `distance` apart."""
    rng = np.random.default_rng(length)
    x = rng.normal(0, 0.3, length).astype(np.float32)
    return x, x + rng.normal(0, distance, length).astype(np.float32)


def exchange(codec, x, y):
    """What each side decodes: two `Decoded`."""
    own, other = encoded(codec, x), encoded(codec, y)
    return codec.decode(own, received(other)), codec.decode(other, received(own))


def encoded_weights_survive_the_wire(codec):
    one = encoded(codec, models()[0])
    other = received(one)
    assert codec.fits(other)
    assert codec.fits(one.without_payload(), without_payload=True)
    assert (other.codec, other.length, other.seed) == (codec.wire_name, LENGTH, 5)
    np.testing.assert_array_equal(other.scales, one.scales)
    np.testing.assert_array_equal(other.checksums, one.checksums)
    np.testing.assert_array_equal(_bytes(other), _bytes(one))


def a_chunk_may_be_empty(codec):
    one = encoded(codec, models(0)[0])
    assert (one.payload.shape, one.checksums.shape) == ((0, codec.row_length), (codec.words, 0))
    assert codec.decode(one, one).correction.shape == (0, BLOCK)


def corrections_are_exactly_opposite(codec):
    x, y = models()
    at_x, at_y = exchange(codec, x, y)
    assert at_x.accepted.all()
    assert at_y.accepted.all()
    np.testing.assert_array_equal(at_x.correction, -at_y.correction)


def a_correction_leads_to_the_average(codec):
    """On average over many weights; a single weight is rounded."""
    x, y = models(distance=0.05)
    correction = np.asarray(exchange(codec, x, y)[0].correction).reshape(-1)[:LENGTH]
    wanted = (y - x) / 2
    assert abs(correction @ wanted / (wanted @ wanted) - 1) < 0.1


def equal_models_get_no_correction(codec):
    x, _ = models()
    for side in exchange(codec, x, x.copy()):
        np.testing.assert_array_equal(side.correction, np.zeros((4, BLOCK), np.float32))


def the_padding_stays_zero(codec):
    correction = np.asarray(exchange(codec, *models())[0].correction)
    assert not correction[-1, 17:].any()


def corrections_add_up(codec):
    x, y = models()
    own, other = encoded(codec, x), received(encoded(codec, y))
    alone = codec.decode(own, other).correction
    twice = codec.decode(own, other, onto=alone).correction
    np.testing.assert_allclose(twice, 2 * alone, rtol=1e-6)


def only_allowed_blocks_are_averaged(codec):
    x, y = models()
    allowed = np.array([True, False, True, False])
    decoded = codec.decode(encoded(codec, x), received(encoded(codec, y)), allowed=allowed)
    np.testing.assert_array_equal(decoded.accepted, allowed)
    assert not np.asarray(decoded.correction)[~allowed].any()


def damage_is_detected(codec):
    """After one bit of the payload flips, the block is skipped or decoded as before."""
    x, y = models()
    own, other = encoded(codec, x), encoded(codec, y)
    payload, whole = np.array(_bytes(other)), codec.decode(own, received(other)).correction
    rng = np.random.default_rng(3)
    for _ in range(20):
        damaged = payload.copy()
        block, at = int(rng.integers(4)), int(rng.integers(payload.shape[1]))
        damaged[block, at] ^= np.uint8(1 << rng.integers(8))
        changed = tf.constant(damaged.view(np.asarray(other.payload).dtype))
        decoded = codec.decode(own, _with(received(other), changed))
        if decoded.accepted[block]:
            np.testing.assert_array_equal(decoded.correction, whole)
        assert decoded.accepted.sum() >= 3


def blocks_that_are_not_finite_are_refused_by_both_sides(codec):
    for bad in (np.nan, np.inf):
        x, y = models()
        y[BLOCK + 3] = bad
        not_finite = encoded(codec, y)
        assert not not_finite.finite
        np.testing.assert_array_equal(not_finite.usable, [True, False, True, True])
        at_x, at_y = exchange(codec, x, y)
        np.testing.assert_array_equal(at_x.accepted, not_finite.usable)
        np.testing.assert_array_equal(at_y.accepted, not_finite.usable)
        assert np.isfinite(at_x.correction).all()


def the_magnitude_is_the_largest_absolute_weight(codec):
    x, _ = models()
    padded = np.pad(x, (0, 4 * BLOCK - LENGTH)).reshape(4, BLOCK)
    np.testing.assert_array_equal(encoded(codec, x).magnitude, np.abs(padded).max(axis=1))


def _bytes(one):
    payload = np.ascontiguousarray(one.payload)
    return payload.view(np.uint8).reshape(len(payload), -1)


def _with(one, payload):
    return Encoded(one.codec, one.length, one.seed, one.scales, one.checksums, payload)


LAWS = (
    encoded_weights_survive_the_wire,
    a_chunk_may_be_empty,
    corrections_are_exactly_opposite,
    a_correction_leads_to_the_average,
    equal_models_get_no_correction,
    the_padding_stays_zero,
    corrections_add_up,
    only_allowed_blocks_are_averaged,
    damage_is_detected,
    blocks_that_are_not_finite_are_refused_by_both_sides,
    the_magnitude_is_the_largest_absolute_weight,
)
