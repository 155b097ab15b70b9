"""The checks of a program, one after another, on every rank.

    CHECKS = (this_holds, that_holds)       in the program

    swarmrun -n 3 tests/mpi/programs/checks.py REPORT fit ill       with the root on the PYTHONPATH

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

DEADLINE = 200.0  # seconds for a program; ten times what a quiet machine needs
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
            faulthandler.dump_traceback_later(DEADLINE, exit=True, file=stacks)
            began = time.monotonic()
            try:
                run(importlib.import_module(name).CHECKS)
            except BaseException:
                write(over=name, failure=traceback.format_exc(), seconds=time.monotonic() - began)
                os._exit(3)
            write(over=name, failure="", seconds=round(time.monotonic() - began, 2))
            faulthandler.cancel_dump_traceback_later()
            # Or a rank that is quick would meet the others in the wrong program.
            world.gather(name, "the next program")


def run(checks) -> None:
    for check in checks:
        began = time.monotonic()
        keras.backend.clear_session()
        check()
        if world.rank() == 0:
            print(f"{check.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    gc.collect()


if __name__ == "__main__":
    main()
