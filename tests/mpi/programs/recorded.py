"""Trains with a record of every exchange, which another program checks: see test_history.py."""

import sys

import keras
import numpy as np

import swarm_tf

RANK = swarm_tf.rank()
DIRECTORY = sys.argv[1]

for mode, codec, bits in [
    ("nonblocking", "lattice", 4),
    ("blocking", "float32", 8),
    ("pull", "lattice", 8),
]:
    keras.utils.set_random_seed(RANK)
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(32)]
    model = keras.Sequential([keras.Input([40]), *layers, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    x = np.random.default_rng(RANK).normal(size=[400, 40]).astype(np.float32)
    callback = swarm_tf.SwarmCallback(2, bits, mode=mode, codec=codec, record=f"{DIRECTORY}/{mode}")
    model.fit(x, x[:, :1] + RANK, batch_size=8, epochs=2, verbose=0, callbacks=[callback])
    assert callback.counters.exchanges > 0
print(f"rank {RANK} passed", flush=True)
