"""Cross-entropy against NumPy in float64 and against Keras."""

import keras
import numpy as np
import pytest

from tasks.crossentropy import Crossentropy, crossentropy


def entropies(labels, logits):
    """-log p of every class in float64, and of the labels."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    every = np.log(np.exp(shifted).sum(axis=-1, keepdims=True)) - shifted
    return every, np.take_along_axis(every, labels[..., None], axis=-1)[..., 0]


@pytest.fixture(params=[(5,), (3, 4)], ids=["a class each", "a sentence each"])
def drawn(request):
    rng = np.random.default_rng(len(request.param))
    labels = rng.integers(0, 7, request.param)
    logits = rng.normal(scale=20, size=(*request.param, 7)).astype(np.float32)
    return labels, logits, rng.integers(0, 2, request.param).astype(np.float32)


def test_without_smoothing_it_is_minus_the_log_probability_of_the_label(drawn):
    labels, logits, _ = drawn
    _, expected = entropies(labels, logits)
    np.testing.assert_allclose(crossentropy(labels, logits), expected, rtol=1e-5, atol=1e-5)


def test_smoothing_mixes_the_label_with_all_classes(drawn):
    """Keras' loss on smoothed one-hot labels is the reference."""
    labels, logits, _ = drawn
    reference = keras.losses.categorical_crossentropy(
        keras.ops.one_hot(labels, 7), logits, from_logits=True, label_smoothing=0.1
    )
    np.testing.assert_allclose(crossentropy(labels, logits, 0.1), reference, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_weighted_mean(drawn):
    labels, logits, weights = drawn
    every, own = entropies(labels, logits)
    mixed = 0.8 * own + 0.2 * every.mean(axis=-1)
    got = Crossentropy(0.2)(labels, logits, weights)
    assert float(got) == pytest.approx((mixed * weights).sum() / weights.sum(), rel=1e-5)
    assert float(Crossentropy(0.2)(labels, logits)) == pytest.approx(mixed.mean(), rel=1e-5)
