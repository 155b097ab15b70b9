"""All tokens count equally, whatever their batches; compared with sums in NumPy, float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tasks import token_metrics
from tasks.crossentropy import Crossentropy

VOCABULARY, SMOOTHING = 5, 0.2


@pytest.fixture
def batches():
    """Labels, logits and weights in batches of different shapes and paddings."""
    rng = np.random.default_rng(0)
    drawn = []
    for rows, width in ((2, 9), (6, 3), (1, 1)):
        labels = rng.integers(0, VOCABULARY, (rows, width)).astype(np.int32)
        logits = rng.normal(scale=2, size=(rows, width, VOCABULARY)).astype(np.float32)
        weights = np.arange(width) < rng.integers(1, width + 1, (rows, 1))
        drawn.append((labels, logits, weights.astype(np.float32)))
    return drawn


def expected(batches):
    """The metrics by name: means over all tokens that are not padding."""
    loss = entropy = right = count = 0.0
    for labels, logits, weights in batches:
        log_probs = logits.astype(np.float64)
        log_probs -= np.log(np.exp(log_probs).sum(axis=-1, keepdims=True))
        own = -np.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
        smoothed = (1 - SMOOTHING) * own - SMOOTHING * log_probs.mean(axis=-1)
        loss += (smoothed * weights).sum()
        entropy += (own * weights).sum()
        right += ((logits.argmax(axis=-1) == labels) * weights).sum()
        count += weights.sum()
    return {
        "loss": loss / count,
        "perplexity": np.exp(entropy / count),
        "accuracy": right / count,
    }


def metrics():
    return [
        token_metrics.loss(SMOOTHING),
        token_metrics.accuracy(),
        token_metrics.Perplexity(),
    ]


def test_means_are_over_tokens(batches):
    for metric in metrics():
        for batch in batches:
            metric.update_state(*batch)
        assert float(metric.result()) == pytest.approx(expected(batches)[metric.name], rel=1e-5)


def test_keras_reports_the_token_metrics_and_no_other_loss(batches):
    """`evaluate` of a model that gives its input back, over batches of different shapes."""
    model = keras.Sequential([keras.Input((None, VOCABULARY)), keras.layers.Identity()])
    model.compile(loss=Crossentropy(SMOOTHING), weighted_metrics=metrics(), jit_compile=False)
    specs = [(None, None, VOCABULARY), (None, None), (None, None)]
    dataset = tf.data.Dataset.from_generator(
        lambda: ((logits, labels, weights) for labels, logits, weights in batches),
        output_signature=tuple(
            tf.TensorSpec(shape, kind)
            for shape, kind in zip(specs, (tf.float32, tf.int32, tf.float32), strict=True)
        ),
    )
    got = model.evaluate(dataset, verbose=0, return_dict=True)
    assert got == pytest.approx(expected(batches), rel=1e-5)
