"""Processes that a rank starts are not part of the job, however they start and end."""

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
    model.compile("sgd", "mse", jit_compile=False)
    return model


class InEveryEpoch(keras.callbacks.Callback):
    def __init__(self, action):
        super().__init__()
        self.action = action

    def on_epoch_end(self, epoch, logs=None):
        self.action()


def assert_training_goes_on(action):
    """All epochs are trained, and ranks end equal, while `action` starts processes."""
    rng = np.random.default_rng(swarm_tf.rank())
    x = rng.normal(size=[64, 4]).astype(np.float32)
    net = model()
    callbacks = [swarm_tf.SwarmCallback(2), InEveryEpoch(action)]
    history = net.fit(x, x[:, :1], epochs=EPOCHS, verbose=0, callbacks=callbacks)
    assert len(history.epoch) == EPOCHS
    every = world.transport().gather(net.get_weights()[0].tobytes(), "the weights", 60)
    assert len(set(every)) == 1


def rank_and_size(_=None):
    """What a worker uses to find its shard of the data; and whether it is without MPI."""
    return swarm_tf.rank(), swarm_tf.size(), world.transport() is None


OURS = swarm_tf.rank(), swarm_tf.size(), True


def a_child_can_be_terminated():
    def action():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(20)
        assert child.exitcode == -signal.SIGTERM, child.exitcode

    assert_training_goes_on(action)


def many_children_can_be_terminated_at_once():
    """Some are terminated before they have run their first line."""

    def action():
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(1)
            os.kill(pid, signal.SIGTERM)
            _, status = os.waitpid(pid, 0)
            assert os.WTERMSIG(status) == signal.SIGTERM

    assert_training_goes_on(action)


def the_workers_of_a_pool_know_the_rank():
    def action():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(rank_and_size, range(4)) == [OURS] * 4

    assert_training_goes_on(action)


def a_spawned_child_knows_the_rank():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(rank_and_size, range(2)) == [OURS] * 2


def children_that_fail_do_not_end_their_rank():
    def action():
        for source in ("raise ValueError('on purpose')", "raise SystemExit(3)"):
            pid = os.fork()
            if pid == 0:
                # It ends as a script does: with its exit functions and its hook.
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

    assert_training_goes_on(action)


def a_child_program_trains_alone():
    """It imports the library and trains, without the other ranks."""
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


def the_workers_of_a_data_set_know_the_rank():
    net = model()
    data = Data(workers=2, use_multiprocessing=True)
    history = net.fit(data, epochs=EPOCHS, verbose=0, callbacks=[swarm_tf.SwarmCallback(2)])
    assert len(history.epoch) == EPOCHS
    every = world.transport().gather(net.get_weights()[0].tobytes(), "the weights", 60)
    assert len(set(every)) == 1


CHECKS = (
    a_child_can_be_terminated,
    the_workers_of_a_pool_know_the_rank,
    children_that_fail_do_not_end_their_rank,
    the_workers_of_a_data_set_know_the_rank,
)
SLOW = (
    many_children_can_be_terminated_at_once,
    a_spawned_child_knows_the_rank,
    a_child_program_trains_alone,
)
