"""Ways to write a model."""

import keras
import numpy as np
from keras import layers

from zoo.specimens import BATCH, INPUTS, numbers, refused, slow_specimen, specimen
from zoo.watch import failing, swarm


def fit(model, loss="mse", optimizer="sgd", **options):
    model.compile(optimizer, loss)
    x, y = numbers()
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[swarm(**options)])


@slow_specimen
def sequential():
    """A keras.Sequential with its input."""
    fit(keras.Sequential([keras.Input([INPUTS]), layers.Dense(8, "relu"), layers.Dense(1)]))


@slow_specimen
def sequential_without_input():
    """A keras.Sequential that its first batch builds."""
    fit(keras.Sequential([layers.Dense(8, "relu"), layers.Dense(1)]))


@slow_specimen
def functional():
    """Two inputs, two outputs, a layer used twice."""
    a, b = keras.Input([INPUTS], name="a"), keras.Input([INPUTS], name="b")
    shared = layers.Dense(8, "tanh")
    both = layers.Concatenate()([shared(a), shared(b)])
    model = keras.Model([a, b], [layers.Dense(1)(both), layers.Dense(2)(both)])
    model.compile("sgd", ["mse", "mae"], loss_weights=[1.0, 0.5])
    x, y = numbers()
    model.fit(
        [x, x[::-1]], [y, np.hstack([y, -y])], batch_size=BATCH, verbose=0, callbacks=[swarm()]
    )


@slow_specimen
def nested():
    """Models within models, one of them used twice."""
    inner = keras.Sequential([keras.Input([INPUTS]), layers.Dense(INPUTS, "relu")])
    x = keras.Input([INPUTS])
    fit(keras.Model(x, layers.Dense(1)(inner(inner(x)))))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(8, "relu")
        self.blocks = [layers.Dense(8, "relu") for _ in range(2)]
        self.out = layers.Dense(1)

    def call(self, x):
        x = self.hidden(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


@specimen
def subclassed_unbuilt():
    """A model without weights before its first batch."""
    fit(Subclassed())


@slow_specimen
def subclassed_built():
    """A model that was called once before training."""
    model = Subclassed()
    model(np.zeros([1, INPUTS], "float32"))
    fit(model)


@slow_specimen
def subclassed_that_says_it_is_built():
    """`self.built = True` in __init__ silences Keras' warning, but the layers are not built."""

    class Hasty(Subclassed):
        def __init__(self):
            super().__init__()
            self.built = True

    fit(Hasty())


@slow_specimen
def a_layer_that_is_built_late():
    """One weight is there before the first batch, the others are not."""

    class Late(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=[1], initializer="ones", name="scale")
            self.hidden = layers.Dense(8)
            self.out = layers.Dense(1)

        def call(self, x):
            return self.scale * self.out(self.hidden(x))

    fit(Late())


@slow_specimen
def layers_made_in_build():
    """A model that makes its layers in build(), as custom layers do."""

    class Built(keras.Model):
        def build(self, shape):
            self.hidden = layers.Dense(8, "relu")
            self.hidden.build(shape)
            self.out = layers.Dense(1)
            self.out.build([None, 8])

        def call(self, x):
            return self.out(self.hidden(x))

    fit(Built())


@specimen
def layers_made_in_call():
    """Keras itself refuses them, on both ranks; the next training works."""

    class Lazy(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = None

        def call(self, x):
            if self.out is None:
                self.out = layers.Dense(1)
            return self.out(x)

    with failing(ValueError, "cannot add new elements"):
        fit(Lazy())
    fit(Subclassed())


@slow_specimen
def a_layer_of_ones_own():
    """A custom layer with weights in a list, and state that it updates itself."""

    class Own(layers.Layer):
        def build(self, shape):
            self.kernels = [self.add_weight(shape=[shape[-1], 4]) for _ in range(2)]
            self.seen = self.add_weight(shape=[4], initializer="zeros", trainable=False)

        def call(self, x, training=False):
            y = keras.ops.concatenate([x @ kernel for kernel in self.kernels], axis=1)
            if training:
                self.seen.assign(0.9 * self.seen + 0.1 * keras.ops.mean(y[:, :4], axis=0))
            return y

    fit(keras.Sequential([keras.Input([INPUTS]), Own(), layers.Dense(1)]))


@specimen
def one_scalar_weight():
    """A model with a single number as weight."""

    class Scalar(keras.Model):
        def __init__(self):
            super().__init__()
            self.w = self.add_weight(shape=[], initializer="random_normal")
            self.built = True

        def call(self, x):
            return self.w * x[:, :1]

    fit(Scalar())


@slow_specimen
def one_matrix():
    """A model whose only variable is a matrix of shape [6, 1]."""
    fit(keras.Sequential([keras.Input([INPUTS]), layers.Dense(1, use_bias=False)]))


def _of_size(count):
    """A matrix and a vector of `count` weights each."""
    x = inputs = keras.Input([INPUTS])
    x = layers.Dense(1, use_bias=False)(x)
    x = layers.Dense(count, use_bias=True)(x)
    return keras.Model(inputs, keras.ops.mean(x, axis=1, keepdims=True))


@slow_specimen
def a_block_less_one():
    """1023 weights; a block of the codec has 1024."""
    fit(_of_size(1023))


@slow_specimen
def a_block():
    """1024 weights, exactly a block of the codec."""
    fit(_of_size(1024))


@slow_specimen
def a_block_and_one():
    """1025 weights, one more than a block of the codec."""
    fit(_of_size(1025))


@specimen
def no_weights():
    """A model that has nothing to average."""
    model = keras.Sequential([keras.Input([1]), layers.Rescaling(2.0)])
    model.compile("sgd", "mse")
    x, y = numbers()
    with refused("no trainable weights"):
        model.fit(x[:, :1], y, verbose=0, callbacks=[swarm()])


@specimen
def no_trainable_weights():
    """A model with frozen weights only has nothing to average either."""
    model = keras.Sequential([keras.Input([INPUTS]), layers.Dense(1, trainable=False)])
    model.compile("sgd", "mse")
    x, y = numbers()
    with refused("no trainable weights"):
        model.fit(x, y, verbose=0, callbacks=[swarm()])


@specimen
def complex_weights():
    """Complex weights cannot be averaged."""

    class Complex(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=[shape[-1], 1], dtype="complex64", initializer="ones")

        def call(self, x):
            return keras.ops.real(keras.ops.cast(x, "complex64") @ self.w)

    model = keras.Sequential([keras.Input([INPUTS]), Complex()])
    model.compile("sgd", "mse")
    x, y = numbers()
    with refused("complex64"):
        model.fit(x, y, verbose=0, callbacks=[swarm()])
