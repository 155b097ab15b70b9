"""Kinds of input data."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import swarm_tf
from zoo.specimens import BATCH, BATCHES, INPUTS, numbers, slow_specimen, specimen
from zoo.watch import check, swarm


def network(loss="mse", outputs=1, **options):
    model = keras.Sequential(
        [keras.Input([INPUTS]), layers.Dense(8, "relu"), layers.Dense(outputs)]
    )
    model.compile("sgd", loss, **options)
    return model


def dataset():
    return tf.data.Dataset.from_tensor_slices(numbers()).batch(BATCH)


@slow_specimen
def arrays():
    """NumPy arrays that Keras shuffles, with a part for validation."""
    x, y = numbers()
    network().fit(
        x, y, batch_size=BATCH, epochs=2, validation_split=0.2, verbose=0, callbacks=[swarm()]
    )


@slow_specimen
def generator():
    """A Python generator without end."""

    def batches():
        x, y = numbers()
        while True:
            for i in range(0, len(x), BATCH):
                yield x[i : i + BATCH], y[i : i + BATCH]

    network().fit(batches(), steps_per_epoch=BATCHES, epochs=2, verbose=0, callbacks=[swarm()])


@specimen
def generator_and_unbuilt_model():
    """Keras builds an unbuilt model from the shapes that the generator gives."""

    def batches():
        x, y = numbers()
        for i in range(0, len(x), BATCH):
            yield x[i : i + BATCH], y[i : i + BATCH]

    model = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(batches(), verbose=0, callbacks=[swarm()])


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        x, y = numbers()
        return x[index * BATCH :][:BATCH], y[index * BATCH :][:BATCH]


@slow_specimen
def py_dataset():
    """Data is a keras.utils.PyDataset."""
    network().fit(Batches(), verbose=0, callbacks=[swarm()])


@slow_specimen
def py_dataset_with_threads():
    """Two threads read the data set."""
    network().fit(Batches(workers=2), verbose=0, callbacks=[swarm()])


@slow_specimen
def py_dataset_with_processes():
    """Two processes, forked from a rank, read the data set."""
    data = Batches(workers=2, use_multiprocessing=True)
    history = network().fit(data, epochs=2, verbose=0, callbacks=[swarm()])
    assert len(history.epoch) == 2, f"ended after {len(history.epoch)} of 2 epochs"


@slow_specimen
def tf_data():
    """A tf.data set that is shuffled, batched and prefetched."""
    network().fit(dataset().shuffle(100).prefetch(2), epochs=2, verbose=0, callbacks=[swarm()])


@slow_specimen
def unknown_cardinality():
    """A filtered tf.data set, whose length is unknown."""
    data = dataset().unbatch().filter(lambda x, y: x[0] > -1).batch(BATCH)
    network().fit(data, epochs=2, verbose=0, callbacks=[swarm()])


@slow_specimen
def sample_weights():
    """Sample weights as third element of tf.data, some of them zero."""
    x, y = numbers()
    weights = (np.arange(len(x)) % 3 > 0).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(BATCH)
    network(weighted_metrics=["mae"]).fit(data, verbose=0, callbacks=[swarm()])


@slow_specimen
def dictionaries():
    """Inputs and outputs are named."""
    a, b = keras.Input([INPUTS], name="a"), keras.Input([INPUTS], name="b")
    out = layers.Dense(1, name="out")(layers.Add()([a, layers.Dense(INPUTS)(b)]))
    model = keras.Model({"a": a, "b": b}, {"out": out})
    model.compile("sgd", {"out": "mse"})
    x, y = numbers()
    model.fit({"a": x, "b": x}, {"out": y}, batch_size=BATCH, verbose=0, callbacks=[swarm()])


@slow_specimen
def class_weights():
    """Labels are integers, and classes have weights."""
    x, y = numbers()
    model = network(keras.losses.SparseCategoricalCrossentropy(from_logits=True), outputs=3)
    labels = np.digitize(y[:, 0], [-1.0, 1.0])
    model.fit(
        x, labels, batch_size=BATCH, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, verbose=0,
        callbacks=[swarm()],
    )  # fmt: skip


@slow_specimen
def ragged_length():
    """Batches of words; each batch has another length."""
    rng = np.random.default_rng([3, swarm_tf.rank()])
    data = [rng.integers(0, 20, [BATCH, rng.integers(2, 9)]).astype("int32") for _ in range(40)]
    targets = [(x % 3 == 0).mean(axis=1, keepdims=True).astype("float32") for x in data]

    def batches():
        yield from zip(data, targets, strict=True)

    types = (tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, 1], tf.float32))
    model = keras.Sequential(
        [layers.Embedding(20, 8), layers.GlobalAveragePooling1D(), layers.Dense(1)]
    )
    model.compile("adam", "mse")
    data_of_batches = tf.data.Dataset.from_generator(batches, output_signature=types)
    model.fit(data_of_batches, verbose=0, callbacks=[swarm()])


@specimen
def few_batches():
    """Fewer than the steps between two exchanges: only the end makes models equal."""
    x, y = numbers(2 * BATCH)
    network().fit(x, y, batch_size=BATCH, verbose=0, callbacks=[swarm(local_steps=4)])
    check(averages=False)


@slow_specimen
def validation_every_epoch():
    """Validation data and metrics in every epoch."""
    x, y = numbers()
    network(metrics=["mae"]).fit(
        x, y, batch_size=BATCH, epochs=3, validation_data=(x[:16], y[:16]), verbose=0,
        callbacks=[swarm()],
    )  # fmt: skip
