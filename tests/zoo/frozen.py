"""Frozen layers, and models that are compiled again with other layers frozen."""

import keras
from keras import layers

import swarm_tf
from zoo.specimens import BATCH, INPUTS, numbers, slow_specimen, specimen
from zoo.watch import check, failing, swarm


def network():
    return keras.Sequential(
        [
            keras.Input([INPUTS]),
            layers.Dense(8, "relu", name="base"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(1, name="head"),
        ]
    )


def fit(model, callback=None, **options):
    x, y = numbers()
    callback = callback or swarm(**options)
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[callback])


@slow_specimen
def frozen_before_compile():
    """Ranks start with different bases, and end with rank 0's."""
    model = network()
    model.get_layer("base").trainable = False
    model.compile("adam", "mse")
    fit(model)


@specimen
def frozen_after_compile():
    """Keras trains what is trainable when the step is traced."""
    model = network()
    model.compile("adam", "mse")
    model.get_layer("base").trainable = False
    fit(model)


@slow_specimen
def frozen_batch_normalization():
    """Its statistics do not move, and are equal."""
    model = network()
    model.get_layer("norm").trainable = False
    model.compile("adam", "mse")
    fit(model)


@slow_specimen
def frozen_all_but_the_bias():
    """BitFit: only vectors are trained."""
    model = network()
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.trainable = False
    model.compile("adam", "mse")
    fit(model)


@slow_specimen
def fine_tuning():
    """The usual recipe: train the head, unfreeze the base, compile at a smaller rate, train on."""
    model = network()
    model.get_layer("base").trainable = False
    model.compile("adam", "mse")
    fit(model)
    check()
    model.get_layer("base").trainable = True
    model.compile(keras.optimizers.Adam(1e-4), "mse")
    fit(model)
    check()
    model.get_layer("head").trainable = False
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), "mse")
    fit(model, average_optimizer=True)


@slow_specimen
def fine_tuning_with_one_callback():
    """The same callback is used for all three trainings."""
    model, callback = network(), swarm()
    for frozen in ("base", "head", "norm"):
        for layer in model.layers:
            layer.trainable = layer.name != frozen
        model.compile("sgd", "mse")
        fit(model, callback)
        check()


@slow_specimen
def frozen_while_training():
    """A callback freezes the base in the middle: what is averaged is not what is trained."""

    class Freeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.get_layer("base").trainable = False
                self.model.make_train_function(force=True)

    model = network()
    model.compile("sgd", "mse")
    x, y = numbers()
    with failing(swarm_tf.UsageError, "trains other variables"):
        model.fit(x, y, batch_size=BATCH, epochs=3, verbose=0, callbacks=[swarm(), Freeze()])


@specimen
def a_layer_more_in_the_second_training():
    """A new head on the trained body."""
    body = keras.Sequential([keras.Input([INPUTS]), layers.Dense(8, "relu")])
    for outputs in (1, 1):
        model = keras.Sequential([body, layers.Dense(4), layers.Dense(outputs)])
        model.compile("adam", "mse")
        fit(model)
        check()
