"""Rank 1 fails in the middle of model.fit."""

import sys
import time

import keras
import numpy as np

import swarm_tf

where = sys.argv[1]


def fail():
    print(f"failing at {time.time()}", flush=True)
    if where == "exit":
        sys.exit(3)
    raise ValueError("the reason of rank 1")


class Failing(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.01)
        if swarm_tf.rank() == 1 and batch == 40 and where == "exit":
            fail()


def batches():
    for k in range(3000):
        if swarm_tf.rank() == 1 and k == 40 and where == "data":
            fail()
        yield np.ones([4, 3], np.float32), np.ones([4, 1], np.float32)


model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.01), "mse")
model.fit(batches(), verbose=0, callbacks=[swarm_tf.SwarmCallback(mode="blocking"), Failing()])
print("never", flush=True)
