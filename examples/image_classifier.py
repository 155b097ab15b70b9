"""An image classifier that is trained by all ranks together.

    swarmrun -n 2 examples/image_classifier.py

It differs from a Keras script for one machine in two ways: every rank reads its own part of the
data, and there is one more callback. All ranks start from the same weights and end with the mean
model.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import swarm_tf

RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
keras.utils.set_random_seed(RANK)

digits = load_digits()
train_x, test_x, train_y, test_y = train_test_split(
    digits.images[..., None] / 16, digits.target, test_size=360, random_state=0
)
train = tf.data.Dataset.from_tensor_slices((train_x, train_y))
train = train.shard(SIZE, RANK).cache().shuffle(2000).batch(32)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(
    train,
    epochs=12,
    verbose=2 if RANK == 0 else 0,
    callbacks=[swarm_tf.SwarmCallback(local_steps=2, bits=8)],
)

if RANK == 0:
    _, accuracy = model.evaluate(test_x, test_y, verbose=0)
    print(f"test accuracy of the mean of {SIZE} models: {accuracy:.1%}")
    model.save("image_classifier.keras")
