"""Two nodes with H = 1, float32 and blocking against the algorithm written down in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from swarm_tf.swarmsgd import SwarmCallback
from swarm_tf.trainer import Trainer
from swarm_tf.transport.local import LocalNetwork
from tests.transport.ranks import in_threads

STEPS, BATCH, FEATURES, HIDDEN = 50, 8, 6, 5
RATE, MOMENTUM = 0.05, 0.9


def _data(rank):
    rng = np.random.default_rng(rank)
    x = rng.normal(size=[STEPS, BATCH, FEATURES]).astype(np.float32)
    y = np.sin(x.sum(axis=2, keepdims=True) + rank).astype(np.float32)
    return x, y


def _initial():
    rng = np.random.default_rng(99)
    shapes = [(FEATURES, HIDDEN), (HIDDEN,), (HIDDEN, 1), (1,)]
    return [(0.4 * rng.normal(size=s)).astype(np.float32) for s in shapes]


def _gradient(weights, x, y):
    """The gradient of the mean square error of y against tanh(x A + a) B + b."""
    first, bias, second, _ = weights
    hidden = np.tanh(x @ first + bias)
    error = 2 * (hidden @ second + weights[3] - y) / y.size
    back = error @ second.T * (1 - hidden**2)
    return [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]


def _reference(period=1):
    """SGD with momentum as Keras does it, and the average of both every `period` steps."""
    data = [_data(rank) for rank in (0, 1)]
    models = [[w.astype(np.float64) for w in _initial()] for _ in (0, 1)]
    velocity = [[np.zeros_like(w) for w in model] for model in models]
    for step in range(STEPS):
        for rank in (0, 1):
            x, y = data[rank]
            for k, g in enumerate(_gradient(models[rank], x[step], y[step])):
                velocity[rank][k] = MOMENTUM * velocity[rank][k] - RATE * g
                models[rank][k] = models[rank][k] + velocity[rank][k]
        if (step + 1) % period == 0:
            mean = [(a + b) / 2 for a, b in zip(*models, strict=True)]
            models = [list(mean), list(mean)]
    return models


def _model(rank):
    inputs = keras.Input([FEATURES])
    hidden = keras.layers.Dense(HIDDEN, activation="tanh", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(hidden), name="golden")
    if rank == 0:  # rank 1 gets them from rank 0
        model.set_weights(_initial())
    model.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM), "mse")
    return model


def _train(loop, **options):
    """Trains both ranks with Keras; returns their weights and counters."""
    network = LocalNetwork(2)
    models = [_model(0), _model(1)]  # one after the other: Keras names layers in order

    def action(rank):
        x, y = _data(rank)
        data = tf.data.Dataset.from_tensor_slices((x, y))
        callback = SwarmCallback(
            codec="float32",
            mode="blocking",
            transport=network[rank],
            average_at_end=False,
            timeout_seconds=60,
            **options,
        )
        if loop == "fit":
            models[rank].fit(data, epochs=1, verbose=0, shuffle=False, callbacks=[callback])
        else:
            trainer = Trainer(models[rank])
            trainer.fit(data.repeat(), steps=STEPS, steps_per_epoch=STEPS, callbacks=[callback])
        return callback.counters

    counters = in_threads(2, action)
    return [m.get_weights() for m in models], counters


@pytest.mark.parametrize("loop", ["fit", "Trainer"])
def test_two_nodes_follow_the_reference(loop):
    got, counters = _train(loop, local_steps=1)
    assert sum(c.exchanges for c in counters) == STEPS
    for rank, expected in enumerate(_reference()):
        for a, b in zip(got[rank], expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    for a, b in zip(*got, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)


def test_two_nodes_with_five_local_steps_follow_the_reference():
    got, counters = _train("fit", local_steps=5)
    assert sum(c.exchanges for c in counters) == STEPS // 5
    for rank, expected in enumerate(_reference(period=5)):
        for a, b in zip(got[rank], expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_the_reference_without_averaging_is_different():
    one, many = _reference(period=1), _reference(period=STEPS + 1)
    assert max(np.abs(a - b).max() for a, b in zip(one[0], many[0], strict=True)) > 0.01
