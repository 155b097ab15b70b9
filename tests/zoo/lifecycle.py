"""Many trainings in one program, trainings that fail or stop, models saved and loaded."""

import keras
import numpy as np
from keras import layers

import swarm_tf
from swarm_tf import consensus
from swarm_tf.cluster import world
from zoo import pair
from zoo.specimens import BATCH, INPUTS, numbers, refused, slow_specimen, specimen
from zoo.watch import TRAININGS, assert_equal_on_ranks, check, failing, swarm

RANK = swarm_tf.rank


def network(width=8, optimizer="adam"):
    model = keras.Sequential([keras.Input([INPUTS]), layers.Dense(width, "relu"), layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def fit(model, *callbacks, epochs=1, **options):
    x, y = numbers()
    callbacks = callbacks or [swarm()]
    return model.fit(
        x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks), **options
    )


class Raises(keras.callbacks.Callback):
    """Raises an error after some batches, as a pruned trial does."""

    def __init__(self, error, after=6):
        super().__init__()
        self.error, self.after = error, after

    def on_train_batch_end(self, batch, logs=None):
        self.after -= 1
        if self.after == 0:
            raise self.error


# Many trainings.


@specimen
def again_with_the_same_callback():
    """The second of two trainings goes on from the first."""
    model, callback = network(), swarm()
    fit(model, callback)
    check()
    fit(model, callback)
    check(goes_on=True)
    assert int(model.optimizer.iterations) == 48


@slow_specimen
def again_with_a_new_callback():
    """The training goes on with initial_epoch, as after a pause."""
    model = network()
    fit(model, epochs=1)
    check()
    fit(model, epochs=3, initial_epoch=1)
    check(goes_on=True)


@specimen
def the_same_callback_for_another_model():
    """The second model has another size."""
    callback = swarm()
    for width in (8, 12, 8):
        fit(network(width), callback)
        check()


@slow_specimen
def without_a_check_in_between():
    """Trainings follow each other at once: one rank may be in the next one already."""
    model = network()
    for _ in range(4):
        fit(model)
        fit(network(5))


@slow_specimen
def weights_set_between_trainings():
    """Only rank 0 sets weights: the second training starts equal."""
    model = network()
    fit(model)
    check()
    if RANK() == 0:
        model.set_weights([w + 1 for w in model.get_weights()])
    fit(model)


@slow_specimen
def a_rank_trains_alone_in_between():
    """Rank 1 trains without the callback in between."""
    model = network()
    fit(model)
    check()
    if RANK() == 1:
        x, y = numbers()
        model.fit(x, y, verbose=0)
    fit(model)


@specimen
def zero_epochs():
    """Nothing is trained, and no rank waits."""
    model = network()
    fit(model, epochs=0)
    check(averages=False)
    fit(model)


@slow_specimen
def mean_by_hand():
    """average_at_end=False leaves the mean to the program."""
    model, callback = network(), swarm(average_at_end=False)
    fit(model, callback)
    check(equal=False)
    every = pair.exchange(model.get_weights(), "weights")
    assert any(np.any(a != b) for a, b in zip(*every, strict=True)), "equal before the mean"
    callback.weights.assign(consensus.mean(callback.weights, world.transport()))
    for a, b, mean in zip(*every, model.get_weights(), strict=True):
        np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-6, atol=1e-7)


@slow_specimen
def cross_validation():
    """A model and a callback for each fold, and an evaluation after it."""
    x, y = numbers()
    for fold in range(3):
        model = network(4 + fold)
        kept = np.arange(len(x)) % 3 != fold
        model.fit(x[kept], y[kept], batch_size=BATCH, verbose=0, callbacks=[swarm()])
        model.evaluate(x[~kept], y[~kept], verbose=0)
        check()


@slow_specimen
def clone_model():
    """A clone is another model."""
    model = network()
    fit(model)
    check()
    clone = keras.models.clone_model(model)
    clone.compile("sgd", "mse")
    fit(clone)


# Trainings that fail or stop.


@slow_specimen
def an_error_on_both_ranks():
    """An error that was handled has no effect on the next training."""
    for _ in range(2):
        with failing(RuntimeError, "pruned"):
            fit(network(), swarm(), Raises(RuntimeError("pruned")))
        fit(network())
        check()


@slow_specimen
def an_error_and_the_same_callback():
    """After an error the same callback trains the same model."""
    model, callback = network(), swarm()
    with failing(RuntimeError, "pruned"):
        fit(model, callback, Raises(RuntimeError("pruned")))
    fit(model, callback)


@slow_specimen
def an_error_before_the_first_batch():
    """A callback that comes after ours fails in on_train_begin."""

    class Early(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise OSError("no such file")

    with failing(OSError, "no such file"):
        fit(network(), swarm(), Early())
    fit(network())


@specimen
def an_error_on_one_rank():
    """Rank 1 handles it. Rank 0 ends its training, alone or with an error that names rank 1."""
    callback = swarm(timeout_seconds=10)
    if RANK() == 1:
        with failing(RuntimeError, "pruned"):
            fit(network(), callback, Raises(RuntimeError("pruned")), epochs=2)
    else:
        try:
            fit(network(), callback, epochs=2)
        except Exception as error:
            if "rank 1" not in str(error):
                raise
        TRAININGS.clear()  # rank 1 has no such training
    fit(network())


@specimen
def an_interrupt():
    """A KeyboardInterrupt, as in a notebook; then the training goes on."""
    model = network()
    with failing(KeyboardInterrupt):
        fit(model, swarm(), Raises(KeyboardInterrupt()))
    fit(model)


@slow_specimen
def stopped_on_one_rank():
    """model.stop_training on rank 1: rank 0 trains on, both end with the mean."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if RANK() == 1 and batch == 10:
                self.model.stop_training = True

    fit(network(), swarm(), Stop(), epochs=2)


@slow_specimen
def a_bad_shape():
    """The data does not fit the model: Keras says so on both ranks; the next training works."""
    x, y = numbers()
    with failing(ValueError, "shape"):
        network().fit(x[:, :3], y, verbose=0, callbacks=[swarm()])
    fit(network())


# Files.


@slow_specimen
def save_load_continue():
    """Rank 0 saves; both ranks load the model with its optimizer and go on."""
    path = pair.directory() / "model.keras"
    model = network(optimizer=keras.optimizers.SGD(0.01, momentum=0.9))
    fit(model)
    check()
    if RANK() == 0:
        model.save(path)
    pair.exchange(None, "the file")
    loaded = keras.models.load_model(path)
    fit(loaded)
    assert int(loaded.optimizer.iterations) == 48


@specimen
def load_on_one_rank():
    """Rank 0 loads a model, rank 1 has a new one, which gets rank 0's weights, slots and steps."""
    path = pair.directory() / "model.keras"
    model = network()
    x, y = numbers()
    if RANK() == 0:
        model.fit(x, y, batch_size=BATCH, verbose=0)
        model.save(path)
        model = keras.models.load_model(path)
    fit(model)
    check()
    assert_equal_on_ranks(model.optimizer.iterations, "the optimizer's steps")


@slow_specimen
def load_weights_on_one_rank():
    """Both ranks start from the weights that rank 0 loads."""
    path = pair.directory() / "model.weights.h5"
    model = network()
    if RANK() == 0:
        model.set_weights([w + 3 for w in model.get_weights()])
        model.save_weights(path)
        model = network()
        model.load_weights(path)
    fit(model)
    check()
    assert np.mean(model.get_weights()[0]) > 1, "the loaded weights are lost"


@slow_specimen
def resumed_on_one_rank():
    """Rank 0's schedule is at step 24: both ranks go on with the same rate."""
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = network(optimizer=keras.optimizers.SGD(decay, momentum=0.9))
    x, y = numbers()
    if RANK() == 0:
        model.fit(x, y, batch_size=BATCH, verbose=0)
    fit(model)
    check()
    rate = float(model.optimizer.learning_rate)
    assert_equal_on_ranks(rate, "the learning rate")
    assert int(model.optimizer.iterations) == 48


@slow_specimen
def resumed_gan_on_one_rank():
    """Optimizers that compile() does not know become equal, or are refused."""
    from zoo.train_steps import GAN

    gan = GAN()
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3))
    x, _ = numbers()
    if RANK() == 0:
        gan.fit(x, batch_size=BATCH, verbose=0)
    with refused("d_optimizer has taken steps.* on rank 0.*rank 1"):
        gan.fit(x, batch_size=BATCH, verbose=0, callbacks=[swarm()])
    gan.d_optimizer.build(gan.discriminator.trainable_variables)
    gan.g_optimizer.build(gan.generator.trainable_variables)
    gan.fit(x, batch_size=BATCH, verbose=0, callbacks=[swarm()])
