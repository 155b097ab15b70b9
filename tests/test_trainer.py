"""The custom loop: the same steps as model.fit, whatever the blocks."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from swarm_tf import SwarmCallback, Trainer
from swarm_tf.transport.local import LocalNetwork


def make() -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
    return model


def batches() -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat()


class Notes(keras.callbacks.Callback):
    """Records which hooks were called."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs, self.losses, self.ended = [], [], [], 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)
        self.losses.append(logs["loss"])

    def on_train_end(self, logs=None):
        self.ended += 1


class Boundaries(SwarmCallback):
    """A swarm alone on its network that sets boundaries and exchanges nothing."""

    def __init__(self, **settings):
        super().__init__(transport=LocalNetwork(1)[0], **settings)
        self.seen = []

    def begin(self, common):
        self._next_exchange_step = self._steps.draw(self._rng)

    def boundary(self, step):
        if self.should_exchange(step):
            self.seen.append(step)

    def on_train_end(self, logs=None):
        pass


def test_weights_and_losses_are_those_of_model_fit():
    ours, theirs = make(), make()
    notes = Notes()
    Trainer(ours).fit(batches(), steps=20, steps_per_epoch=5, callbacks=[notes])
    history = theirs.fit(batches(), steps_per_epoch=5, epochs=4, verbose=0).history["loss"]
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(notes.losses, history, rtol=1e-4)


def test_hooks_are_called_as_by_model_fit():
    notes = Notes()
    Trainer(make()).fit(batches(), steps=12, steps_per_epoch=5, callbacks=[notes])
    assert notes.epochs == [0, 1, 2]
    assert notes.batches == [4, 4, 1]  # in its epoch, the last step of each block
    assert notes.ended == 1


@pytest.mark.parametrize("law", ["fixed", "geometric"])
def test_blocks_end_at_the_boundaries_and_share_one_trace(law):
    swarm = Boundaries(local_steps=3, local_steps_distribution=law)
    model, traces = make(), []
    original = model.train_step
    model.train_step = lambda batch: (traces.append(batch), original(batch))[1]
    Trainer(model).fit(batches(), steps=30, steps_per_epoch=30, callbacks=[swarm])
    if law == "fixed":
        assert swarm.seen == list(range(3, 31, 3))
    else:
        assert len(set(np.diff(swarm.seen))) > 1
    assert len(traces) == 1


def test_a_callback_that_decides_each_step_is_called_each_step():
    class Odd(Boundaries):
        def should_exchange(self, step):
            return step % 2 == 1

    swarm = Odd()
    Trainer(make()).fit(batches(), steps=6, steps_per_epoch=6, callbacks=[swarm])
    assert swarm.seen == [1, 3, 5]


def test_stop_training_ends_the_training():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model = make()
    Trainer(model).fit(batches(), steps=50, steps_per_epoch=5, callbacks=[Stop()])
    assert int(model.optimizer.iterations) == 10


def test_a_model_without_variables_yet_is_built_from_the_data():
    class Late(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    for model in (Late(), keras.Sequential([keras.layers.Dense(1)])):
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
        Trainer(model).fit(batches(), steps=6, steps_per_epoch=6)
        assert int(model.optimizer.iterations) == 6


def test_waiting_for_data_is_not_counted_as_computing():
    pause = 0.02

    def slow(x, y):
        tf.py_function(lambda: time.sleep(pause), [], [])
        return x, y

    starved, fed = Trainer(make()), Trainer(make())
    # TensorFlow would add a prefetch, with which a busy machine would not wait.
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    starved.fit(batches().map(slow).with_options(options), steps=20, steps_per_epoch=10)
    assert 20 * pause <= starved.wait_seconds <= starved.train_seconds
    original = fed.model.train_step
    fed.model.train_step = lambda batch: (
        tf.py_function(lambda x: time.sleep(pause), batch[:1], []),
        original(batch),
    )[1]
    fed.fit(batches().cache().prefetch(2), steps=20, steps_per_epoch=10)
    assert fed.train_seconds >= 20 * pause + fed.wait_seconds
