"""Signals: within `listening` the first is remembered, and the second ends the process."""

import os
import signal
import subprocess
import sys
import threading
import time

import keras
import pytest
import tensorflow as tf

from swarm_tf.cluster import signals
from swarm_tf.runner import evaluation


def _received_signal():
    """The signal received. It may take up to ten seconds, since another thread takes it in."""
    deadline = time.monotonic() + 10
    while not signals.received() and time.monotonic() < deadline:
        time.sleep(0.01)
    return signals.received()


def _some_handler(number, frame):
    """A handler of the user's. Without one, SIGINT is ignored in a shell's background job."""


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_first_signal_is_remembered(number):
    before = signal.signal(number, _some_handler)
    try:
        with signals.listening():
            assert signals.received() is None
            os.kill(os.getpid(), number)
            assert _received_signal() is number
        assert signal.getsignal(number) is _some_handler
        assert signals.received() is None
    finally:
        signal.signal(number, before)


def test_a_nested_listening_leaves_the_outer_one_in_force():
    with signals.listening():
        with signals.listening():
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
        assert _received_signal() is signal.SIGUSR1


def test_other_threads_leave_signals_alone():
    def listen():
        with signals.listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_second_signal_ends_the_process_even_in_a_long_operation():
    code = (
        "import hashlib; from swarm_tf.cluster import signals\n"
        "with signals.listening():\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)  # minutes, in C\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert run.stdout.readline() == b"ready\n"
        for number in (signal.SIGUSR1, signal.SIGTERM):
            time.sleep(1)
            assert run.poll() is None
            run.send_signal(number)
        assert run.wait(100) == 128 + signal.SIGTERM
    finally:
        run.kill()


def test_a_signal_ends_a_running_evaluation():
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile(loss="mse")
    data = tf.data.Dataset.from_tensors((tf.ones([4, 1]), tf.ones([4, 1])))
    assert evaluation.evaluate(model, data.repeat(3))["loss"] > 0
    with signals.listening():
        signal.raise_signal(signal.SIGUSR1)
        assert evaluation.evaluate(model, data.repeat()) == {}  # the data never ends
    assert signals.received() is None


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with signals.listening():
            signal.raise_signal(signal.SIGUSR1)
            assert signals.received() is None
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
