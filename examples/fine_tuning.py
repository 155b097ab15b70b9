"""Fine-tuning: first a new head on frozen layers, then all layers at a lower rate.

    swarmrun -n 2 examples/fine_tuning.py

Frozen layers are made equal on all ranks at the start and are not exchanged after that. Layers must
not be frozen or unfrozen during a call of `fit`, only between two calls.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
from sklearn.datasets import load_digits

import swarm_tf

RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
keras.utils.set_random_seed(RANK)
VERBOSE = 2 if RANK == 0 else 0

digits = load_digits()
images, labels = digits.data / 16, digits.target
shard = slice(RANK, 1440, SIZE)

# The layers to fine-tune: they are pretrained to classify digits as small or large.
base = keras.Sequential(
    [keras.Input([64]), keras.layers.Dense(64, "relu"), keras.layers.Dense(32, "relu")], name="base"
)
pretrained = keras.Sequential([base, keras.layers.Dense(1, "sigmoid")])
pretrained.compile("adam", "binary_crossentropy")
pretrained.fit(
    images[shard], labels[shard] > 4, epochs=5, verbose=0, callbacks=[swarm_tf.SwarmCallback()]
)

base.trainable = False
model = keras.Sequential([keras.Input([64]), base, keras.layers.Dense(10, "softmax")])
model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
swarm = swarm_tf.SwarmCallback(local_steps=2)
model.fit(images[shard], labels[shard], epochs=6, verbose=VERBOSE, callbacks=[swarm])

base.trainable = True
model.compile(keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(images[shard], labels[shard], epochs=6, verbose=VERBOSE, callbacks=[swarm])

if RANK == 0:
    _, accuracy = model.evaluate(images[1440:], labels[1440:], verbose=0)
    print(f"test accuracy: {accuracy:.1%}")
