"""Recalibration sets moving statistics to those of the data under the current weights."""

import keras
import numpy as np
import tensorflow as tf

from swarm_tf.runner import evaluation


def test_moving_statistics_become_the_mean_over_the_batches():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (8, 16, 5)).astype(np.float32)
    model = keras.Sequential([keras.Input((5,)), keras.layers.BatchNormalization(momentum=0.9)])
    layer = model.layers[0]
    evaluation.recalibrate(model, [(tf.constant(batch), None) for batch in x])
    np.testing.assert_allclose(layer.moving_mean, x.mean(axis=1).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, x.var(axis=1).mean(axis=0), rtol=1e-4)
    assert layer.momentum == 0.9


def test_a_model_without_statistics_stays_as_it_was():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    before = model.get_weights()
    evaluation.recalibrate(model, [(tf.ones([2, 4]), None)])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
