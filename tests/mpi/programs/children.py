"""Processes that a rank starts are plain ones, however they are started and however they end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np

import swarm_tf
from swarm_tf.cluster import world

EPOCHS = 3


def model():
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


class InEveryEpoch(keras.callbacks.Callback):
    def __init__(self, action):
        super().__init__()
        self.action = action

    def on_epoch_end(self, epoch, logs=None):
        self.action()


def trains_on(action):
    """All epochs are trained, and ranks end equal, while `action` starts processes."""
    rng = np.random.default_rng(swarm_tf.rank())
    x = rng.normal(size=[64, 4]).astype(np.float32)
    net = model()
    callbacks = [swarm_tf.SwarmCallback(2), InEveryEpoch(action)]
    history = net.fit(x, x[:, :1], epochs=EPOCHS, verbose=0, callbacks=callbacks)
    assert len(history.epoch) == EPOCHS
    every = world.transport().gather(net.get_weights()[0].tobytes(), "the weights", 60)
    assert len(set(every)) == 1


def numbers(_=None):
    """What a worker asks to find its part of the data."""
    return swarm_tf.rank(), swarm_tf.size(), world.transport() is None


OURS = swarm_tf.rank(), swarm_tf.size(), True


def a_child_that_is_terminated():
    def action():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(20)
        assert child.exitcode == -signal.SIGTERM, child.exitcode

    trains_on(action)


def many_children_that_are_terminated_at_once():
    """Some before they have run a line of their own."""

    def action():
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(1)
            os.kill(pid, signal.SIGTERM)
            _, status = os.waitpid(pid, 0)
            assert os.WTERMSIG(status) == signal.SIGTERM

    trains_on(action)


def a_pool():
    def action():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(numbers, range(4)) == [OURS] * 4

    trains_on(action)


def a_spawned_child():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(numbers, range(2)) == [OURS] * 2


def children_that_fail():
    def action():
        for source in ("raise ValueError('on purpose')", "raise SystemExit(3)"):
            pid = os.fork()
            if pid == 0:
                # As a script of its own would: with its exit functions and its hook.
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115
                try:
                    exec(source)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                import atexit

                atexit._run_exitfuncs()
                os._exit(7)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 7

    trains_on(action)


def a_program():
    """One that imports the library and trains: alone."""
    source = (
        "import keras, numpy as np, swarm_tf\n"
        "model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])\n"
        "model.compile('sgd', 'mse')\n"
        "x = np.ones([8, 4], 'float32')\n"
        "model.fit(x, x[:, :1], verbose=0, callbacks=[swarm_tf.SwarmCallback()])\n"
        "print(swarm_tf.rank(), swarm_tf.size())\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(OURS[0]), str(OURS[1])], done.stdout
    assert "training alone" in done.stderr


class Data(keras.utils.PyDataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        assert swarm_tf.rank() == OURS[0]
        x = np.random.default_rng([swarm_tf.rank(), index]).normal(size=[8, 4])
        return x.astype(np.float32), x[:, :1].astype(np.float32)


def workers_of_a_data_set():
    net = model()
    data = Data(workers=2, use_multiprocessing=True)
    history = net.fit(data, epochs=EPOCHS, verbose=0, callbacks=[swarm_tf.SwarmCallback(2)])
    assert len(history.epoch) == EPOCHS
    every = world.transport().gather(net.get_weights()[0].tobytes(), "the weights", 60)
    assert len(set(every)) == 1


CHECKS = (
    a_child_that_is_terminated, many_children_that_are_terminated_at_once, a_pool,
    a_spawned_child, children_that_fail, a_program, workers_of_a_data_set,
)  # fmt: skip
