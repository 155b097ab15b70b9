"""Trains with a record of every exchange, and checks the record: see tests/history."""

import keras
import numpy as np
from checks import REPORT

import swarm_tf
from swarm_tf.cluster import world
from swarm_tf.history import check

RANK = swarm_tf.rank()


def the_record_of_a_real_run_has_no_violations():
    for mode in ("nonblocking", "blocking", "pull"):
        directory = REPORT / mode
        keras.utils.set_random_seed(RANK)
        layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(32)]
        model = keras.Sequential([keras.Input([40]), *layers, keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        x = np.random.default_rng(RANK).normal(size=[400, 40]).astype(np.float32)
        callback = swarm_tf.SwarmCallback(2, 4, mode=mode, record=str(directory))
        model.fit(x, x[:, :1] + RANK, batch_size=8, epochs=2, verbose=0, callbacks=[callback])
        world.gather(None, "the records")
        if RANK == 0:
            figures, violations = check.check(check.read(directory))
            assert violations == [], f"{mode}: {violations} in {figures}"
            # Each of three ranks takes 100 steps, and waits for an exchange after at most 8.
            assert figures["exchanges"] > 10, figures


CHECKS = (the_record_of_a_real_run_has_no_violations,)
