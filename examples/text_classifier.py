"""A text classifier that learns its vocabulary from the data.

    swarmrun -n 2 examples/text_classifier.py

A vocabulary is not averaged, so it must be the same on all ranks: every rank adapts the layer to
the same texts. (Layers with different vocabularies are refused with an error.) Then each rank
trains on its own part of the texts.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

import swarm_tf

RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
keras.utils.set_random_seed(RANK)

# Reviews: two positive or two negative words among neutral words.
rng = np.random.default_rng(0)
POSITIVE, NEGATIVE = ["great", "moving", "funny", "clever"], ["dull", "slow", "clumsy", "shallow"]
NEUTRAL = ["the", "film", "plot", "actors", "were", "in", "a", "way", "scene", "of", "us"]
labels = rng.integers(2, size=2000)
texts = [
    " ".join(
        rng.permutation([*rng.choice(NEUTRAL, 10), *rng.choice(POSITIVE if label else NEGATIVE, 2)])
    )
    for label in labels
]

vectorize = keras.layers.TextVectorization(max_tokens=100, output_sequence_length=12)
vectorize.adapt(texts)  # the same texts on all ranks

shard = slice(RANK, 1600, SIZE)
train = tf.data.Dataset.from_tensor_slices((texts[shard], labels[shard]))
train = train.batch(32).map(lambda text, label: (vectorize(text), label)).cache().shuffle(100)

model = keras.Sequential(
    [
        keras.Input([12], dtype="int64"),
        keras.layers.Embedding(100, 16),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
model.fit(train, epochs=8, verbose=2 if RANK == 0 else 0, callbacks=[swarm_tf.SwarmCallback(2)])
if RANK == 0:
    _, accuracy = model.evaluate(vectorize(texts[1600:]), labels[1600:], verbose=0)
    print(f"test accuracy: {accuracy:.1%}")
