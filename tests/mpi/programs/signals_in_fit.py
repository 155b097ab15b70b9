"""In `model.fit` a signal to any rank, at any moment, ends the training of all in good order."""

import os
import signal
import threading
import time

import keras
import numpy as np

import swarm_tf
from swarm_tf.cluster import world

mpi = world.transport()
RANK = swarm_tf.rank()


def shoot():
    os.kill(os.getpid(), signal.SIGUSR1)


def fit(epochs, *others, pause=0.0):
    """Steps taken; ranks end equal."""
    keras.utils.set_random_seed(RANK)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    x = np.random.default_rng(RANK).normal(size=[40, 4]).astype(np.float32)
    wait = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(pause))
    callback = swarm_tf.SwarmCallback(2, timeout_seconds=30)
    callbacks = [callback, wait, *(make(callback) for make in others)]
    model.fit(x, x[:, :1], batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks)
    every = mpi.gather(model.get_weights()[0].tobytes(), "weights", 60)
    assert len(set(every)) == 1
    return int(model.optimizer.iterations)


def the_next_training_ends_a_listener_that_a_failed_one_has_left():
    """One that failed before its ranks met: Keras tells no callback of it."""

    def fails(logs):
        raise ArithmeticError

    try:
        fit(1, lambda callback: keras.callbacks.LambdaCallback(on_train_begin=fails))
    except ArithmeticError:
        nothing_is_left_of_it()
    else:
        raise AssertionError("it has not failed")


def while_it_waits_for_a_slower_rank():
    """Rank 0 has finished; the signal comes once it has told that, and reaches rank 1."""

    def when_done(callback):
        def watch():
            while callback.member is None or 0 not in callback.member.driver.view.done:
                time.sleep(0.01)
            time.sleep(0.2)  # it waits in on_train_end by now
            shoot()

        if RANK == 0:
            threading.Thread(target=watch, daemon=True).start()
        return keras.callbacks.Callback()

    steps = fit(1 if RANK == 0 else 1000, when_done, pause=0.02 * RANK)
    assert steps == 10 if RANK == 0 else steps < 5000, steps


def on_the_slower_rank_while_the_other_waits():
    def at_step(callback):
        return keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: shoot() if RANK == 1 and epoch == 5 else None
        )

    steps = fit(1 if RANK == 0 else 1000, at_step, pause=0.01 * RANK)
    assert steps <= 80


def at_the_very_end_of_training():
    """In the hook of a callback that ends after ours, before the last mean."""

    def last(callback):
        return keras.callbacks.LambdaCallback(
            on_train_end=lambda logs: shoot() if RANK == 1 else None
        )

    steps = fit(2, last)
    assert steps == 20, steps


def before_the_first_batch():
    def first(callback):
        return keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: shoot() if RANK == 1 else None
        )

    assert fit(100, first, pause=0.01) < 1000


def nothing_is_left_of_it():
    assert fit(3) == 30
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


CHECKS = (
    the_next_training_ends_a_listener_that_a_failed_one_has_left,
    while_it_waits_for_a_slower_rank, on_the_slower_rank_while_the_other_waits,
    at_the_very_end_of_training, before_the_first_batch, nothing_is_left_of_it,
)  # fmt: skip
