"""Optimizers: learning rates over a rank's own steps, clipping and weight decay."""

import keras
import numpy as np
import pytest

from swarm_tf.config import OptimizerConfig
from swarm_tf.runner import optimizers


def rates(steps: int, per_epoch: int, **fields) -> np.ndarray:
    config = OptimizerConfig(learning_rate=0.5, **fields)
    rate = optimizers.schedule(config, steps=steps, steps_per_epoch=per_epoch)
    return np.array([float(rate(i) if callable(rate) else rate) for i in range(steps)])


def test_the_constant_schedule_keeps_the_rate():
    np.testing.assert_allclose(rates(5, 5), 0.5)


def test_the_step_schedule_falls_at_the_given_fractions_of_the_run():
    got = rates(100, 10, schedule="step", step_boundaries=(0.5, 0.75), step_factor=0.1)
    np.testing.assert_allclose(got[:50], 0.5)
    np.testing.assert_allclose(got[51:75], 0.05)
    np.testing.assert_allclose(got[76:], 0.005)


def test_the_cosine_schedule_ends_at_zero():
    got = rates(101, 10, schedule="cosine")
    expected = 0.25 * (1 + np.cos(np.pi * np.arange(101) / 101))
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    "fields", [{}, {"schedule": "step", "step_boundaries": (0.5,)}, {"schedule": "cosine"}]
)
def test_warm_up_rises_linearly_to_the_peak(fields):
    got = rates(100, 10, warmup_epochs=2.0, **fields)
    assert np.all(np.diff(got[:20]) > 0)
    np.testing.assert_allclose(np.diff(got[:20]), 0.5 / 20, rtol=1e-4)
    assert got.max() == pytest.approx(0.5, rel=0.06)


def test_inverse_square_root_is_that_of_the_paper():
    """Vaswani et al. 2017, equation 3, divided by its value at the end of the warm-up."""
    got = rates(200, 10, schedule="inverse_sqrt", warmup_epochs=4.0)
    step = np.arange(1, 201)
    expected = np.minimum(step**-0.5, step * 40**-1.5) / 40**-0.5
    np.testing.assert_allclose(got, 0.5 * expected, rtol=1e-5)


def test_inverse_square_root_of_a_warm_up_shorter_than_a_step_falls_at_once():
    got = rates(10, 1, schedule="inverse_sqrt", warmup_epochs=0.1)
    np.testing.assert_allclose(got, 0.5 * np.arange(1, 11) ** -0.5, rtol=1e-5)


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
def test_gradients_are_clipped_by_their_global_norm(name):
    config = OptimizerConfig(name=name, learning_rate=1.0, clip_norm=2.0)
    optimizer = optimizers.build(config, steps=10, steps_per_epoch=10)
    assert optimizer.global_clipnorm == 2.0
    weights = [keras.Variable(np.zeros(2, np.float32)) for _ in range(2)]
    gradients = [np.array(g, np.float32) for g in ([3, 0], [0, 4])]
    if name == "momentum":
        optimizer.apply(gradients, weights)
        np.testing.assert_allclose(weights[0], [-1.2, 0], rtol=1e-6)
        np.testing.assert_allclose(weights[1], [0, -1.6], rtol=1e-6)


def test_adam_takes_its_constants():
    config = OptimizerConfig(name="adam", learning_rate=1.0, beta_2=0.98, epsilon=1e-9)
    optimizer = optimizers.build(config, steps=10, steps_per_epoch=10)
    assert (optimizer.beta_2, optimizer.epsilon) == (0.98, 1e-9)


@pytest.mark.parametrize("decay_all", [False, True])
def test_weight_decay_applies_to_kernels_only_or_to_all_weights(decay_all):
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, momentum=0.0, decay_all=decay_all)
    optimizer = optimizers.build(config, steps=10, steps_per_epoch=10)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()]
    )
    optimizer.build(model.trainable_variables)
    before = {v.path: v.numpy().copy() + 1 for v in model.trainable_variables}
    for v in model.trainable_variables:
        v.assign(before[v.path])
    zeros = [np.zeros(v.shape, np.float32) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    for v in model.trainable_variables:
        factor = 1 - 0.1 * 0.5 if decay_all or v.name == "kernel" else 1
        np.testing.assert_allclose(v.numpy(), factor * before[v.path], rtol=1e-6)
