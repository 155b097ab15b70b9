"""Runs the checks of a program on every rank, one after another."""

import time
from collections.abc import Callable

import keras

from swarm_tf.cluster import world


def run(*checks: Callable[[], None]) -> None:
    for check in checks:
        began = time.monotonic()
        keras.backend.clear_session()
        check()
        if world.rank() == 0:
            print(f"{check.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    print(f"rank {world.rank()} passed", flush=True)
