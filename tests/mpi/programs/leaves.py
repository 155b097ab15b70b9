"""One rank's program ends while others wait for it: they end too, and name that rank."""

import sys
import time

import keras
import numpy as np
import pytest

import swarm_tf
from swarm_tf.baselines.local_sgd import LocalSGD
from swarm_tf.cluster import world

RANK = swarm_tf.rank()
FAILS = "failing at"


class Stop(Exception):
    pass


class AtStep(keras.callbacks.Callback):
    """Runs an action after a step."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.step:
            self.action()


def raises():
    raise Stop


def leaves():
    print(f"{FAILS} {time.time()}", flush=True)
    sys.exit(0)


def fit(callback, *others, epochs=1):
    keras.utils.set_random_seed(RANK)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(RANK).normal(size=[400, 4]).astype(np.float32)
    model.fit(x, x[:, :1], batch_size=4, epochs=epochs, verbose=0, callbacks=[callback, *others])
    return model


def main(where):
    if where == "before":  # the others wait for it at the start
        if RANK == 1:
            leaves()
        fit(swarm_tf.SwarmCallback())
    elif where == "first":  # rank 0, which all others depend on
        if RANK == 0:
            leaves()
        fit(swarm_tf.SwarmCallback())
    elif where == "swarm":
        slow = AtStep(-1, raises) if RANK else AtStep(30, leaves)
        fit(swarm_tf.SwarmCallback(2), slow, epochs=10_000)
    elif where == "local_sgd":
        fit(LocalSGD(2), AtStep(30, leaves if RANK == 1 else lambda: None), epochs=10_000)
    elif where == "elsewhere":  # it calls another collective than the others
        if RANK == 1:
            print(f"{FAILS} {time.time()}", flush=True)
            world.gather(None, "something else")
        fit(swarm_tf.SwarmCallback())
    print("never", flush=True)


def a_failed_training_that_was_handled_ends_no_program():
    """The training fails on every rank, and every program goes on."""
    for callback, step in ((swarm_tf.SwarmCallback(), 10 + RANK), (LocalSGD(), 10)):
        with pytest.raises(Stop):
            fit(callback, AtStep(step, raises))


CHECKS = (a_failed_training_that_was_handled_ends_no_program,)

if __name__ == "__main__":
    main(sys.argv[1])
