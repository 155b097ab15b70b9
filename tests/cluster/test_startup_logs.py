"""TensorFlow's startup logs are hidden; all other lines are printed."""

import os
import subprocess
import sys

import pytest

from swarm_tf.cluster import startup_logs


def test_other_lines_are_printed_at_the_end(capfd):
    with startup_logs.start():
        os.write(2, b"I0000 00:00:1.2 3 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"something went wrong\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "something went wrong\n"


def test_an_exception_passes_after_the_lines_printed_before_it(capfd):
    @startup_logs.start()
    def broken_import():
        os.write(2, b"libcuda is broken\n")
        raise ImportError

    with pytest.raises(ImportError):
        broken_import()
    assert capfd.readouterr().err == "libcuda is broken\n"


def test_importing_tensorflow_prints_nothing():
    code = (
        "from swarm_tf.cluster import startup_logs\n"
        "with startup_logs.start():\n    import tensorflow"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
