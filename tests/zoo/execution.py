"""Eager, compiled, in blocks of steps; modes and codecs of the exchange."""

import keras
import tensorflow as tf
from keras import layers

from zoo.specimens import BATCH, INPUTS, numbers, refused, slow_specimen, specimen
from zoo.watch import swarm


def fit(rows=24 * BATCH, build=True, callback=None, **options):
    first = [keras.Input([INPUTS])] if build else []
    model = keras.Sequential([*first, layers.Dense(8, "relu"), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", **options)
    data = tf.data.Dataset.from_tensor_slices(numbers(rows)).batch(BATCH)
    model.fit(data, epochs=2, verbose=0, callbacks=[callback or swarm()])
    return model


@specimen
def run_eagerly():
    """No graph at all."""
    fit(run_eagerly=True)


@specimen
def jit_compile():
    """The step is one XLA program."""
    fit(jit_compile=True)


@slow_specimen
def jit_compile_and_unbuilt():
    """The model is built within the XLA program."""
    fit(jit_compile=True, build=False)


@slow_specimen
def three_steps_per_execution():
    """24 batches in blocks of 3."""
    fit(steps_per_execution=3)


@specimen
def eight_steps_per_execution():
    """The last block has 4 of 8 batches, of which the last is half full."""
    fit(rows=20 * BATCH - 4, steps_per_execution=8)


@slow_specimen
def eight_steps_per_execution_and_unbuilt():
    """The ranks join after the first block."""
    fit(build=False, steps_per_execution=8)


@specimen
def steps_per_execution_without_iterations():
    """No optimizer counts the steps of a block."""

    class Model(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x) - y))
            for weight, gradient in zip(
                self.trainable_weights, tape.gradient(loss, self.trainable_weights), strict=True
            ):
                weight.assign_sub(0.01 * gradient)
            return {"loss": loss}

    model = Model([keras.Input([INPUTS]), layers.Dense(1)])
    model.compile(steps_per_execution=3)
    x, y = numbers()
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[swarm()])


@slow_specimen
def default_strategy():
    """Within the scope of tf.distribute's own default."""
    with tf.distribute.get_strategy().scope():
        fit()


@slow_specimen
def one_device_strategy():
    """One replica, so there is nothing to refuse."""
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        fit()


@specimen
def mirrored_strategy():
    """The library does not support several replicas in one process."""
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        raise AssertionError(f"the zoo starts TensorFlow with two CPU devices, not {len(devices)}")
    with refused("tf.distribute"), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        fit()


def _specimen(name, options):
    def how_it_exchanges():
        fit(callback=swarm(**options))

    how_it_exchanges.__name__ = name
    how_it_exchanges.__doc__ = f"SwarmCallback({options})."
    slow_specimen(how_it_exchanges)  # tests/mpi has such trainings


_specimen("blocking", {"mode": "blocking"})
_specimen("pull", {"mode": "pull"})
_specimen("float32", {"codec": "float32"})
_specimen("four_bits", {"bits": 4})
