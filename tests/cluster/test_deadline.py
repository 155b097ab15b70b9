"""What keeps Python's lock too long is killed, after a line that says what it was."""

import subprocess
import sys

# ctypes.PyDLL keeps Python's lock, as mpi4py does while MPI starts.
PROGRAM = """
import ctypes, sys
from swarm_tf.cluster.deadline import deadline
limit, takes = map(int, sys.argv[1:])
with deadline(limit, "waited for nobody"):
    ctypes.PyDLL(None).sleep(takes)
print("done")
"""


def run(limit, takes):
    command = [sys.executable, "-c", PROGRAM, str(limit), str(takes)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_in_time():
    done = run(limit=30, takes=1)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_too_late():
    done = run(limit=1, takes=30)
    assert (done.returncode, done.stdout, done.stderr) == (-9, "", "waited for nobody\n")
