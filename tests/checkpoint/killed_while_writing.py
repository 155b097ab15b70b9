"""Kills a process before its k-th call of a C function while it writes a checkpoint, for every k.

    python tests/checkpoint/killed_while_writing.py DIRECTORY

All system calls are such calls. After each kill the newest file must be whole. Prints the kills.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from swarm_tf.checkpoint.store import Stage, Store


def state(step):
    return {"weights": np.full(100, step), "step": step}


def killed_before(call, action):
    """Run `action` in a child that kills itself; whether it did, or `action` ended before."""
    child = os.fork()
    if child == 0:
        left = call

        def count(frame, event, _):
            nonlocal left
            if event == "c_call":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main():
    kills, killed = 0, True
    while killed:
        # Each time anew: a write also removes what earlier ones have left.
        written = Store(Path(sys.argv[1]) / str(kills), Stage(1, 1), 0)
        for step in (1, 2):
            written.write(step, state(step))
        (written.path / ".step-000000001.tmp").touch()
        killed = killed_before(kills, lambda to=written: to.write(3, state(3)))
        latest = written.steps()[0]
        assert latest in ((2, 3) if killed else (3,))
        found = written.read(latest)
        assert found["step"] == latest
        np.testing.assert_array_equal(found["weights"], state(latest)["weights"])
        kills += killed
    assert len(list(written.path.iterdir())) == 2
    print(kills)


if __name__ == "__main__":
    main()
