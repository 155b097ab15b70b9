"""Runs specimens on this rank, one after another: `-m zoo REPORT NAME...`.

REPORT is a directory; rank r writes r.jsonl: for each specimen a line when it begins and one when
it is over, with the failure. After a training that failed both ranks end, so that what it leaves
cannot make the next specimen fail.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import swarm_tf
from zoo import pair, specimens, watch

DEADLINE = 150.0  # seconds; the slowest need a few on a quiet machine
AFTER_A_FAILURE = 15.0  # how long a rank that failed waits for the other rank


def main(report: Path, names: list[str]) -> None:
    # Two devices, for programs that need several; they share one thread.
    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration() for _ in range(2)]
    tf.config.set_logical_device_configuration(cpu, two)
    every = specimens.collect()
    gc.freeze()  # a collection after each specimen need not look through TensorFlow again
    rank = swarm_tf.rank()
    pair.exchange(os.getpid(), "the start of the zoo")
    with (
        open(report / f"{rank}.jsonl", "a", buffering=1) as lines,
        open(report / f"{rank}.stacks", "a") as stacks,
    ):

        def write(**event: Any) -> None:
            lines.write(json.dumps(event) + "\n")

        write(pid=os.getpid())
        for name in names:
            write(begins=name)
            faulthandler.dump_traceback_later(DEADLINE, exit=True, file=stacks)
            began = time.monotonic()
            failure, training_failed = run(every[name])
            write(over=name, failure=failure, seconds=round(time.monotonic() - began, 2))
            try:
                seconds = AFTER_A_FAILURE if training_failed else pair.SECONDS
                training_failed = any(
                    pair.exchange(training_failed, "the end of the specimen", seconds)
                )
            except TimeoutError:
                training_failed = True
            faulthandler.cancel_dump_traceback_later()
            if training_failed:
                os._exit(3)


def run(function: Any) -> tuple[str, bool]:
    """What fails in a specimen, empty if nothing does; and whether a training has failed."""
    keras.config.set_dtype_policy("float32")
    keras.backend.clear_session()
    keras.utils.set_random_seed(100 + swarm_tf.rank())  # ranks start differently
    specimens.SHOWN.clear()
    try:
        function()
        if watch.TRAININGS or not specimens.SHOWN:
            watch.check()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-6:]]
        only_wrong = isinstance(error, AssertionError) and all(t.ended for t in watch.TRAININGS)
        return f"{type(error).__name__}: {error}\n  {' < '.join(reversed(where))}", not only_wrong
    finally:
        watch.TRAININGS.clear()
        gc.collect()
    return "", False


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
