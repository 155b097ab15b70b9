"""Messages between the zoo's two ranks, on their own communicator, without the library."""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import swarm_tf

SECONDS = 120.0


@functools.cache
def _communicator() -> Any:
    assert swarm_tf.size() == 2, "the zoo needs two ranks: swarmrun -n 2"
    from mpi4py import MPI  # which the library has started by now

    return MPI.COMM_WORLD.Dup()


def exchange(value: Any, what: str, seconds: float = SECONDS) -> list[Any]:
    """The values of both ranks, in their order.

    Raises:
      TimeoutError: the other rank does not call this.
    """
    communicator, other = _communicator(), 1 - swarm_tf.rank()
    request = communicator.isend(value, other)
    deadline = time.monotonic() + seconds
    while (message := communicator.improbe(other)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: rank {other} has not come within {seconds:g} s")
        time.sleep(0.002)
    theirs = message.recv()
    while not request.test()[0]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: rank {other} has not received this rank's value")
        time.sleep(0.002)
    return [value, theirs] if other else [theirs, value]


def directory() -> Path:
    """A new directory beside the zoo's report, the same on both ranks."""
    mine = tempfile.mkdtemp(dir=sys.argv[1]) if swarm_tf.rank() == 0 else ""
    shared, _ = exchange(mine, "a directory")
    return Path(shared)
