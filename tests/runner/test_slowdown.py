"""A rank that is slowed down trains the same, and sleeps in proportion to its computing."""

import keras
import numpy as np
import pytest

from swarm_tf.runner.slowdown import Slowdown
from swarm_tf.trainer import Trainer
from tests.test_trainer import batches, make


class Watched(Slowdown):
    """Records the computing time of each step, and does not sleep."""

    def __init__(self, factor):
        super().__init__(factor)
        self.computing = []

    def _sleep(self, computing):
        self.computing.append(float(computing))
        return super()._sleep(0.0)


@pytest.mark.parametrize("fit", [True, False])
def test_a_slow_rank_sleeps_once_a_step_and_trains_the_same(fit):
    plain, slow, watched = make(), make(), Watched(3.0)
    Trainer(plain).fit(batches(), steps=10, steps_per_epoch=5)
    if fit:
        slow.fit(batches(), steps_per_epoch=5, epochs=2, verbose=0, callbacks=[watched])
    else:
        Trainer(slow).fit(batches(), steps=10, steps_per_epoch=5, callbacks=[watched])
    assert len(watched.computing) == 10
    assert all(0 < seconds < 60 for seconds in watched.computing)
    for a, b in zip(plain.get_weights(), slow.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_sleep_is_the_rest_of_the_longer_step(monkeypatch):
    slept = []
    monkeypatch.setattr("swarm_tf.runner.slowdown.time.sleep", slept.append)
    Slowdown(3.0)._sleep(0.5)
    Slowdown(1.0, 0.75)._sleep(0.5)
    Slowdown(3.0, 0.75)._sleep(0.5)
    Slowdown(1.0, 0.25)._sleep(0.5)
    assert slept == [1.0, 0.25, 1.75, 0.0]


def test_none_gradients_stay_none():
    """A weight that does not affect the loss has the gradient None."""
    unused = keras.layers.Dense(2)
    inputs = keras.Input([3])
    model = keras.Model(inputs, [keras.layers.Dense(1)(inputs), unused(inputs)])
    model.compile(keras.optimizers.SGD(0.1), [keras.losses.MeanSquaredError(), None])
    before = [np.array(w) for w in unused.get_weights()]
    data = np.ones([8, 3], np.float32), np.ones([8, 1], np.float32)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        model.fit(*data, verbose=0, callbacks=[Watched(2.0)])
    for a, b in zip(before, unused.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
