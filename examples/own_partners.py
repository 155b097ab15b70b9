"""Each rank requests its next exchange from the neighbour that it chose longest ago.

    swarmrun -n 4 examples/own_partners.py

A subclass may override `should_exchange`, `choose_partner` and `on_exchange_end`. Each rank decides
for itself; ranks share no schedule.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import collections

import keras
from sklearn.datasets import load_digits

import swarm_tf

RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
keras.utils.set_random_seed(RANK)


class LongestAgo(swarm_tf.SwarmCallback):
    """Chooses the neighbour that it chose longest ago, and measures the exchanges it requests."""

    def __init__(self, **options):
        super().__init__(**options)
        self.chosen_at = collections.Counter()  # neighbour -> local step
        self.seconds = []

    def choose_partner(self, neighbors, rng):
        oldest = min(self.chosen_at[rank] for rank in neighbors)
        partner = int(rng.choice([rank for rank in neighbors if self.chosen_at[rank] == oldest]))
        self.chosen_at[partner] = self.local_step()
        return partner

    def on_exchange_end(self, exchange):
        if not exchange.failure:
            self.seconds.append(exchange.seconds)


digits = load_digits()
shard = slice(RANK, None, SIZE)
model = keras.Sequential([keras.Input([64]), keras.layers.Dense(10, "softmax")])
model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
swarm = LongestAgo(local_steps=2)
model.fit(digits.data[shard] / 16, digits.target[shard], epochs=10, verbose=0, callbacks=[swarm])

if swarm.seconds:
    average = sum(swarm.seconds) / len(swarm.seconds)
    print(f"rank {RANK}: {len(swarm.seconds)} exchanges of {average * 1e3:.1f} ms each")
