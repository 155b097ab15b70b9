"""Layers that adapt to data, and learn something else on each rank's shard.

What they learn must be the same on all ranks, or be refused.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import swarm_tf
from zoo.specimens import BATCH, INPUTS, numbers, refused, slow_specimen, specimen
from zoo.watch import assert_equal_on_ranks, check, swarm


@specimen
def normalization():
    """Mean and variance are variables: ranks get rank 0's, and predict the same."""
    x, y = numbers()
    x = x * (1 + swarm_tf.rank()) + 5 * swarm_tf.rank()
    normalize = layers.Normalization()
    normalize.adapt(x)
    model = keras.Sequential([keras.Input([INPUTS]), normalize, layers.Dense(1)])
    model.compile("sgd", "mse")
    model.predict(x[:8], verbose=0)  # traced before the ranks join
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[swarm()])
    check()
    ones = np.ones([1, INPUTS], "float32")
    assert_equal_on_ranks(model.predict(ones, verbose=0), "what the model predicts")
    assert_equal_on_ranks(model(ones), "what the model returns when it is called")


SENTENCES = [
    ["the cat sat on the mat", "a dog sat on the cat", "the mat"],
    ["one swallow makes no summer", "no cat makes a summer", "one dog"],
]


def _words_model(lookup, size):
    text = keras.Input([], dtype="string")
    x = lookup(text)
    x = layers.Embedding(size, 4)(x)
    x = layers.Flatten()(x) if len(x.shape) == 2 else layers.GlobalAveragePooling1D()(x)
    model = keras.Model(text, layers.Dense(1)(x))
    model.compile("sgd", "mse")
    return model


def _sentences(repeat=32):
    text = SENTENCES[swarm_tf.rank()] * repeat
    labels = np.array([[float(len(one))] for one in text], "float32") / 30
    return tf.data.Dataset.from_tensor_slices((text, labels)).batch(4)


@specimen
def text_vectorization_of_each_shard():
    """The same word has another number on each rank."""
    vectorize = layers.TextVectorization(max_tokens=30, output_sequence_length=6)
    vectorize.adapt(SENTENCES[swarm_tf.rank()])
    with refused("vocabulary"):
        _words_model(vectorize, 30).fit(_sentences(), verbose=0, callbacks=[swarm()])


@slow_specimen
def text_vectorization_of_all():
    """The layer is adapted to the same text on all ranks."""
    vectorize = layers.TextVectorization(max_tokens=30, output_sequence_length=6)
    vectorize.adapt(SENTENCES[0] + SENTENCES[1])
    _words_model(vectorize, 30).fit(_sentences(), verbose=0, callbacks=[swarm()])


@slow_specimen
def string_lookup_of_each_shard():
    """Vocabularies differ, but have equal lengths."""
    lookup = layers.StringLookup(vocabulary=[["a", "b", "c"], ["c", "b", "a"]][swarm_tf.rank()])
    text = ["a", "b", "c", "a"] * 24
    data = tf.data.Dataset.from_tensor_slices((text, np.ones([96, 1], "float32"))).batch(4)
    inputs = keras.Input([1], dtype="string")
    x = layers.Flatten()(layers.Embedding(5, 4)(lookup(inputs)))
    model = keras.Model(inputs, layers.Dense(1)(x))
    model.compile("sgd", "mse")
    with refused("vocabulary"):
        model.fit(data.map(lambda a, b: (a[:, None], b)), verbose=0, callbacks=[swarm()])


@slow_specimen
def integer_lookup_and_hashing():
    """The lookup is the same on all ranks; hashing learns nothing."""
    inputs = keras.Input([1], dtype="int64")
    a = layers.IntegerLookup(vocabulary=[1, 2, 3, 5, 8])(inputs)
    b = layers.Hashing(8)(inputs)
    both = layers.Concatenate()([layers.Embedding(6, 4)(a), layers.Embedding(8, 4)(b)])
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(both)))
    model.compile("sgd", "mse")
    x = np.random.default_rng(swarm_tf.rank()).integers(0, 9, [96, 1])
    y = x.astype("float32") / 9
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    model.fit(data, verbose=0, callbacks=[swarm()])


@slow_specimen
def discretization_of_each_shard():
    """The layer learns bounds that are not variables."""
    x, y = numbers()
    x = x[:, :1] + 3 * swarm_tf.rank()
    bins = layers.Discretization(num_bins=4)
    bins.adapt(x)
    inputs = keras.Input([1])
    out = layers.Dense(1)(layers.Flatten()(layers.Embedding(4, 4)(bins(inputs))))
    model = keras.Model(inputs, out)
    model.compile("sgd", "mse")
    with refused("bounds|vocabulary"):
        model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[swarm()])


@specimen
def adapted_outside_of_the_model():
    """The layer is in the data pipeline, where the library cannot see it; the model is averaged."""
    x, y = numbers()
    normalize = layers.Normalization()
    normalize.adapt(x)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    model = keras.Sequential([keras.Input([INPUTS]), layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(data.map(lambda a, b: (normalize(a), b)), verbose=0, callbacks=[swarm()])
