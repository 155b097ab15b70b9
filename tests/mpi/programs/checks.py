"""Runs the checks of programs one after another, on every rank.

    CHECKS = (one_law, another_law)         in the program `fit`
    SLOW = (one_more,)                      those of the name `fit-slow`

    swarmrun -n 3 tests/mpi/programs/checks.py REPORT fit leaves    with the root on the PYTHONPATH

See tests/together.py for what is in REPORT, a directory. A check that fails ends the job: the
others would wait for this rank.
"""

import faulthandler
import gc
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

import keras

from swarm_tf.cluster import world

DEADLINE = 200.0  # seconds for a check; ten times and more what a quiet machine needs
REPORT = Path(sys.argv[1])


def main() -> None:
    rank = world.rank()
    with (
        open(REPORT / f"{rank}.jsonl", "a", buffering=1) as lines,
        open(REPORT / f"{rank}.stacks", "a") as stacks,
    ):

        def write(**event):
            lines.write(json.dumps(event) + "\n")

        write(pid=os.getpid())
        for name in sys.argv[2:]:
            write(begins=name)
            began, failure = time.monotonic(), ""
            try:
                faulthandler.dump_traceback_later(DEADLINE, exit=True, file=stacks)
                program, _, slow = name.partition("-")
                module = importlib.import_module(program)
                for check in module.SLOW if slow else module.CHECKS:
                    write(check=check.__name__, at=round(time.monotonic() - began, 1))
                    faulthandler.dump_traceback_later(DEADLINE, exit=True, file=stacks)
                    keras.backend.clear_session()
                    check()
            except BaseException:
                failure = traceback.format_exc()
            write(over=name, failure=failure, seconds=round(time.monotonic() - began, 2))
            if failure:
                os._exit(3)
            faulthandler.cancel_dump_traceback_later()
            gc.collect()
            # Else a fast rank would exchange with ranks that still run the last program.
            world.gather(name, "the next program")


if __name__ == "__main__":
    main()
