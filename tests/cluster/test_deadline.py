"""`deadline` kills a process that holds Python's lock too long, after a line that says why."""

import subprocess
import sys

# ctypes.PyDLL holds Python's lock, as mpi4py does while MPI starts.
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


def test_a_block_that_ends_in_time_is_left_alone():
    done = run(limit=30, takes=1)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_block_that_takes_too_long_kills_its_process():
    done = run(limit=1, takes=30)
    assert (done.returncode, done.stdout, done.stderr) == (-9, "", "waited for nobody\n")
