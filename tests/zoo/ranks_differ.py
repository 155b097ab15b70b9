"""Programs that differ between ranks: they work, or are refused with the first difference."""

import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import swarm_tf
from zoo.specimens import BATCH, INPUTS, logged, numbers, refused, slow_specimen, specimen
from zoo.watch import check, swarm

RANK = swarm_tf.rank


def network(width=8, optimizer="sgd", dtype=None, build=True):
    first = [keras.Input([INPUTS])] if build else []
    hidden = layers.Dense(width, "relu", dtype=dtype)
    model = keras.Sequential([*first, hidden, layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def fit(model, rows=24 * BATCH, *callbacks, epochs=1, **options):
    x, y = numbers(rows)
    callbacks = [swarm(**options), *callbacks]
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks)


@slow_specimen
def names():
    """Rank 0 built another model before, so its variables have other names, which may differ."""
    if RANK() == 0:
        network()
    fit(network())


@specimen
def widths():
    """A layer has another width on rank 1."""
    with refused(r"must be the same on all ranks.*kernel.*\(6, 8\).*rank 0.*\(6, 9\).*rank 1"):
        fit(network(8 + RANK()))
    fit(network())


@slow_specimen
def depths():
    """Rank 1 has one more layer."""
    extra = [layers.Dense(1)] if RANK() else []
    model = keras.Sequential([keras.Input([INPUTS]), layers.Dense(1), *extra])
    model.compile("sgd", "mse")
    with refused("must be the same on all ranks, but variable"):
        fit(model)


@slow_specimen
def types():
    """A layer has float64 weights on rank 1."""
    with refused("must be the same on all ranks.*float32.*float64"):
        fit(network(dtype="float64" if RANK() else None))


@slow_specimen
def frozen():
    """A layer is frozen on rank 1 only."""
    model = network()
    model.layers[0].trainable = RANK() == 0
    model.compile("sgd", "mse")
    with refused("must be the same on all ranks.*trainable.*frozen"):
        fit(model)


@specimen
def optimizers_of_other_kinds():
    """SGD on rank 0 and Adam on rank 1."""
    with refused(
        "optimizer must be the same on all ranks, but is SGD on rank 0 and Adam on rank 1"
    ):
        fit(network(optimizer="adam" if RANK() else "sgd"))


@specimen
def learning_rates():
    """Rank 1 has another rate, and gets rank 0's."""
    model = network(optimizer=keras.optimizers.SGD(0.01 if RANK() == 0 else 0.5))
    fit(model)
    check()
    rate = float(model.optimizer.learning_rate)
    assert rate == np.float32(0.01), f"the learning rate is {rate}"


@specimen
def algorithms():
    """A swarm on rank 0, Local SGD on rank 1."""
    from swarm_tf.baselines.local_sgd import LocalSGD

    model = network()
    callback = LocalSGD() if RANK() else swarm()
    x, y = numbers()
    with refused("algorithm must be the same on all ranks, but is swarm on rank 0"):
        model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[callback])


@slow_specimen
def seeds():
    """keras.utils.set_random_seed with another seed on each rank, and with the same."""
    for seed in (RANK(), 0):
        keras.utils.set_random_seed(seed)
        fit(network())
        check()


@specimen
def half_the_batches():
    """Rank 1 finishes sooner, and serves rank 0 until rank 0 has finished."""
    fit(network(), (24 - 12 * RANK()) * BATCH, epochs=2)


@slow_specimen
def half_the_batches_and_unbuilt():
    """Rank 1 has half the batches, of a model that its first batch builds."""
    fit(network(build=False), (24 - 12 * RANK()) * BATCH)


@slow_specimen
def more_epochs():
    """Rank 1 trains for more epochs."""
    fit(network(), epochs=1 + 2 * RANK())


@slow_specimen
def other_batch_sizes():
    """Rank 1 has smaller batches."""
    x, y = numbers()
    network().fit(x, y, batch_size=8 - 4 * RANK(), verbose=0, callbacks=[swarm()])


def empty_or_not():
    x, y = numbers()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    return data.take(0) if RANK() else data


@slow_specimen
def no_batches():
    """Rank 1 has no batches: rank 0 trains, and no rank waits."""
    network().fit(empty_or_not(), verbose=0, callbacks=[swarm()])
    check(averages=False)


@specimen
def no_batches_and_unbuilt():
    """Keras builds rank 1's model from the shapes of its empty data."""
    network(build=False).fit(empty_or_not(), verbose=0, callbacks=[swarm()])
    check(averages=False)


@specimen
def no_batches_to_build_from():
    """In a custom loop rank 1 never calls its model: all ranks are told so, and none waits."""
    model, callback = network(build=False), swarm()
    x, y = numbers()
    with refused("rank 1: .*no batches"):
        callback.set_model(model)
        callback.on_train_begin()
        for number in range(0 if RANK() else 10):
            callback.on_train_batch_begin(number)
            model.train_on_batch(x[:BATCH], y[:BATCH])
            callback.on_train_batch_end(number)
        callback.on_train_end()


@slow_specimen
def a_slow_rank():
    """Rank 1 takes longer to start and for each step; no rank waits before the end."""

    class Slow(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            time.sleep(0.5 * RANK())

        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.01 * RANK())

    fit(network(), 24 * BATCH, Slow())


@specimen
def built_on_one_rank():
    """Rank 0 has called its model before the training, rank 1 has not."""
    model = network(build=False)
    if RANK() == 0:
        model(np.zeros([1, INPUTS], "float32"))
    fit(model)


@specimen
def the_same_data():
    """A forgotten .shard: a warning says so in one line."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=[24 * BATCH, INPUTS]).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(BATCH)
    with logged("same (data|batch)"):
        network().fit(data, verbose=0, callbacks=[swarm()])


@specimen
def a_thread():
    """The training runs in another thread than the main thread."""
    import threading

    failures = []

    def train():
        try:
            fit(network())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failures, failures
