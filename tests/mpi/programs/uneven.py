"""Rank 0 has fewer batches than the others, in an algorithm that needs equal numbers."""

import sys
import time

import keras
import numpy as np

import swarm_tf
from swarm_tf.baselines.allreduce import AllReduce
from swarm_tf.baselines.local_sgd import LocalSGD

callback = {
    "allreduce": AllReduce(timeout_seconds=3),
    "local_sgd": LocalSGD(2, timeout_seconds=3),
}[sys.argv[1]]
rows = 8 * (8 if swarm_tf.rank() == 0 else 12)
model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
model.compile("sgd", "mse")
print(f"failing at {time.time() + 3}", flush=True)
model.fit(np.ones([rows, 3]), np.ones([rows, 2]), batch_size=8, verbose=0, callbacks=[callback])
print("never", flush=True)
