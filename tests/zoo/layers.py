"""Layers with their own state."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl
from keras import ops

import swarm_tf
from zoo import pair
from zoo.specimens import BATCH, INPUTS, numbers, slow_specimen, specimen, words
from zoo.watch import assert_equal_on_ranks, check, swarm


def fit(hidden, optimizer="sgd", **options):
    model = keras.Sequential(
        [keras.Input([INPUTS]), kl.Dense(8), *hidden, kl.Activation("relu"), kl.Dense(1)]
    )
    model.compile(optimizer, "mse")
    x, y = numbers()
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[swarm(2, **options)])
    return model


@specimen
def batch_normalization():
    """Moving statistics are averaged, the variance stays positive."""
    model = fit([kl.BatchNormalization(momentum=0.5)])
    assert np.min(model.layers[1].moving_variance) > 0


@slow_specimen
def batch_normalization_without_statistics():
    """average_statistics=False: statistics stay each rank's own, the rest is averaged."""
    model = fit([kl.BatchNormalization()], average_statistics=False)
    check(equal=False)
    for v in model.trainable_variables:
        assert_equal_on_ranks(v, v.path)
    zero, one = pair.exchange(np.asarray(model.layers[1].moving_mean), "statistics")
    assert np.any(zero != one)


@slow_specimen
def a_batch_normalization_of_ones_own():
    """A custom batch norm, whose variance is called running_var and falls fast."""

    class Own(kl.Layer):
        def build(self, shape):
            n = shape[-1]
            self.gamma = self.add_weight(shape=[n], initializer="ones", name="gamma")
            self.running_mean = self.add_weight(shape=[n], initializer="zeros", trainable=False)
            self.running_var = self.add_weight(
                shape=[n], initializer="ones", trainable=False, name="running_var"
            )

        def call(self, x, training=False):
            mean, var = self.running_mean.value, self.running_var.value
            if training:
                mean, var = ops.mean(x, axis=0), ops.var(x, axis=0)
                self.running_mean.assign(0.5 * self.running_mean + 0.5 * mean)
                self.running_var.assign(0.5 * self.running_var + 0.5 * var)
            return self.gamma * (x - mean) / ops.sqrt(var + 1e-5)

    x, y = numbers()
    lowest = []
    # Variances fall a million million times.
    x = x * np.geomspace(1e3, 1e-3, len(x))[:, None].astype("float32")
    model = keras.Sequential([keras.Input([INPUTS]), Own(), kl.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-3), "mse")

    def look(batch, logs):
        lowest.append(float(np.min(model.layers[0].running_var)))

    watch = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    for local_steps in (1, 3):
        callbacks = [swarm(local_steps), watch]
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
        assert min(lowest) >= 0, f"the variance falls to {min(lowest):g}"


@slow_specimen
def synchronized_batch_normalization():
    """synchronized=True is about replicas of tf.distribute, of which there is one."""
    fit([kl.BatchNormalization(synchronized=True)])


@slow_specimen
def group_and_layer_normalization():
    """Normalizations without moving statistics."""
    fit([kl.GroupNormalization(2), kl.LayerNormalization(), kl.UnitNormalization()])


@slow_specimen
def spectral_normalization():
    """Its vector u is state that training moves."""
    fit([kl.SpectralNormalization(kl.Dense(8))])


@slow_specimen
def constraints_and_regularizers():
    """A constraint limits the norm of the weights."""
    dense = kl.Dense(8, kernel_constraint="max_norm", kernel_regularizer="l2")
    fit([dense, kl.ActivityRegularization(0.01)])


@slow_specimen
def dropout():
    """Seeds differ between ranks, and stay different."""
    noise = kl.Dropout(0.3, seed=swarm_tf.rank())
    model = fit([noise, kl.GaussianNoise(0.1, seed=swarm_tf.rank() + 5)])
    check()
    zero, one = pair.exchange(np.asarray(model.layers[1].seed_generator.state), "seeds")
    assert np.any(zero != one), "both ranks drop the same"


@slow_specimen
def random_augmentation():
    """Layers that augment images, within the model."""
    model = keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            kl.RandomFlip(),
            kl.RandomTranslation(0.1, 0.1),
            kl.Conv2D(4, 3, activation="relu"),
            kl.SeparableConv2D(4, 3),
            kl.GlobalAveragePooling2D(),
            kl.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    rng = np.random.default_rng(swarm_tf.rank())
    x = rng.normal(size=[160, 8, 8, 1]).astype("float32")
    model.fit(x, x.mean(axis=(1, 2)), batch_size=BATCH, verbose=0, callbacks=[swarm()])


def fit_words(*hidden, optimizer="adam", loss="mse", **options):
    model = keras.Sequential([kl.Embedding(20, 8), *hidden, kl.Dense(1)])
    model.compile(optimizer, loss)
    x, y = words()
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[swarm(2, **options)])
    return model


@slow_specimen
def embedding():
    """An embedding has sparse gradients."""
    fit_words(kl.Flatten())


@slow_specimen
def embedding_with_masks():
    """An embedding with mask_zero, and a bidirectional LSTM."""
    model = keras.Sequential(
        [kl.Embedding(20, 8, mask_zero=True), kl.Bidirectional(kl.LSTM(4)), kl.Dense(1)]
    )
    model.compile("adam", "mse")
    x, y = words()
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[swarm()])


@slow_specimen
def recurrent():
    """A GRU, an LSTM and an RNN cell."""
    fit_words(
        kl.GRU(4, return_sequences=True),
        kl.LSTM(4, return_sequences=True, recurrent_dropout=0.1),
        kl.RNN(kl.SimpleRNNCell(4)),
    )


@slow_specimen
def stateful_lstm():
    """Its state goes on from batch to batch, and is each rank's own."""
    model = keras.Sequential(
        [keras.Input([5, 2], batch_size=BATCH), kl.LSTM(4, stateful=True), kl.Dense(1)]
    )
    model.compile("adam", "mse")
    rng = np.random.default_rng(swarm_tf.rank())
    x = rng.normal(size=[24 * BATCH, 5, 2]).astype("float32")
    states = []

    class Reset(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            model.layers[0].reset_state()

        def on_epoch_end(self, epoch, logs=None):
            states.append(np.asarray(model.layers[0].states[0]))

    model.fit(
        x, x[:, 0, :1], batch_size=BATCH, epochs=2, shuffle=False, verbose=0,
        callbacks=[swarm(), Reset()],
    )  # fmt: skip
    check()
    zero, one = pair.exchange(states, "states")
    assert np.any(zero[0] != one[0]), "both ranks have the same state"


@slow_specimen
def attention():
    """A small Transformer block."""
    x = inputs = keras.Input([5], dtype="int32")
    x = kl.Embedding(20, 8)(x)
    x = kl.LayerNormalization()(x + kl.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True))
    x = kl.LayerNormalization()(x + kl.Dense(8)(kl.Dense(16, "gelu")(x)))
    model = keras.Model(inputs, kl.Dense(20)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    x, _ = words()
    model.fit(x, np.roll(x, 1, axis=1), batch_size=BATCH, verbose=0, callbacks=[swarm()])


@specimen
def tied_weights():
    """The embedding is the last matrix too: one variable, counted once."""

    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = kl.Embedding(20, 8)

        def call(self, x):
            hidden = self.embedding(x)
            return hidden @ ops.transpose(self.embedding.embeddings)

    model = Tied()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    x, _ = words()
    model.fit(x, x, batch_size=BATCH, verbose=0, callbacks=[swarm()])


@slow_specimen
def add_loss_and_metrics_in_layers():
    """A layer that adds a loss and keeps a metric."""

    class Sparse(kl.Layer):
        def __init__(self):
            super().__init__()
            self.seen = keras.metrics.Mean(name="seen")

        def call(self, x):
            self.add_loss(0.01 * ops.mean(ops.abs(x)))
            self.seen.update_state(ops.mean(x))
            return x

    fit([Sparse()])


@specimen
def a_tf_variable_in_a_layer():
    """tf.Variable in place of add_weight: Keras neither trains nor saves it; training goes on."""

    class Counting(kl.Layer):
        def __init__(self):
            super().__init__()
            self.calls = tf.Variable(0.0, trainable=False)

        def call(self, x):
            self.calls.assign_add(1.0)
            return x

    fit([Counting()])


@slow_specimen
def lambda_layer():
    """A function as a layer."""
    fit([kl.Lambda(lambda x: x * 2.0)])
