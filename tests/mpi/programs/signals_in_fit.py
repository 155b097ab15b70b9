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


def send_signal():
    os.kill(os.getpid(), signal.SIGUSR1)


def fit(epochs, *others, pause=0.0):
    """Trains, and asserts that ranks end equal; returns the steps taken."""
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


def a_training_that_failed_at_its_start_leaves_no_signal_listener():
    """Keras calls no hook of a callback when a training fails before its ranks have joined."""

    def fails(logs):
        raise ArithmeticError

    try:
        fit(1, lambda callback: keras.callbacks.LambdaCallback(on_train_begin=fails))
    except ArithmeticError:
        the_next_training_is_complete_and_no_handler_is_left()
    else:
        raise AssertionError("the training has not failed")


def a_signal_to_a_rank_that_waits_at_the_end_reaches_the_others():
    """Rank 0 has finished and announced that; then the signal comes, and rank 1 ends too."""

    def when_done(callback):
        def watch():
            while callback.member is None or 0 not in callback.member.driver.view.done:
                time.sleep(0.01)
            time.sleep(0.2)  # by now rank 0 waits in on_train_end
            send_signal()

        if RANK == 0:
            threading.Thread(target=watch, daemon=True).start()
        return keras.callbacks.Callback()

    steps = fit(1 if RANK == 0 else 1000, when_done, pause=0.02 * RANK)
    assert steps == 10 if RANK == 0 else steps < 5000, steps


def a_signal_to_the_slower_rank_ends_its_training():
    def at_step(callback):
        return keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: send_signal() if RANK == 1 and epoch == 5 else None
        )

    steps = fit(1 if RANK == 0 else 1000, at_step, pause=0.01 * RANK)
    assert steps <= 80


def a_signal_at_the_very_end_changes_nothing():
    """The signal comes in on_train_end of a callback after ours, before the last mean."""

    def last(callback):
        return keras.callbacks.LambdaCallback(
            on_train_end=lambda logs: send_signal() if RANK == 1 else None
        )

    steps = fit(2, last)
    assert steps == 20, steps


def a_signal_before_the_first_batch_ends_the_training():
    def first(callback):
        return keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: send_signal() if RANK == 1 else None
        )

    assert fit(100, first, pause=0.01) < 1000


def the_next_training_is_complete_and_no_handler_is_left():
    assert fit(3) == 30
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


CHECKS = (
    a_training_that_failed_at_its_start_leaves_no_signal_listener,
    a_signal_to_a_rank_that_waits_at_the_end_reaches_the_others,
    a_signal_to_the_slower_rank_ends_its_training,
    the_next_training_is_complete_and_no_handler_is_left,
)
SLOW = (
    a_signal_at_the_very_end_changes_nothing,
    a_signal_before_the_first_batch_ends_the_training,
)
