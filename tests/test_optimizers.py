"""Optimizers: learning rates over a rank's own steps, and what decay leaves alone."""

import keras
import numpy as np
import pytest

from swarm_tf import optimizers
from swarm_tf.config import OptimizerConfig


def rates(steps: int, per_epoch: int, **fields) -> np.ndarray:
    config = OptimizerConfig(learning_rate=0.5, **fields)
    rate = optimizers.schedule(config, steps=steps, steps_per_epoch=per_epoch)
    return np.array([float(rate(i) if callable(rate) else rate) for i in range(steps)])


def test_constant():
    np.testing.assert_allclose(rates(5, 5), 0.5)


def test_step_falls_at_the_given_fractions_of_the_run():
    got = rates(100, 10, schedule="step", step_boundaries=(0.5, 0.75), step_factor=0.1)
    np.testing.assert_allclose(got[:50], 0.5)
    np.testing.assert_allclose(got[51:75], 0.05)
    np.testing.assert_allclose(got[76:], 0.005)


def test_cosine_ends_at_zero():
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


@pytest.mark.parametrize("decay_all", [False, True])
def test_decay_pulls_kernels_only_unless_it_is_to_pull_all(decay_all):
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
