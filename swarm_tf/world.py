"""This process among all ranks: `rank()`, `size()`, and how a failing rank ends the job."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from types import TracebackType

from swarm_tf.transport import mpi
from swarm_tf.transport.base import Transport

_lock = threading.Lock()
_joined: list[Transport | None] = []


def transport() -> Transport | None:
    """The connection to the other ranks, made at the first call; None when this rank is alone.

    Raises:
      UsageError: if a launcher started several ranks but MPI cannot connect them.
    """
    with _lock:
        if not _joined:
            _joined.append(_join())
        return _joined[0]


def rank() -> int:
    """The number of this rank, from 0; 0 when alone."""
    joined = transport()
    return joined.rank if joined else 0


def size() -> int:
    """How many ranks train; 1 when alone."""
    joined = transport()
    return joined.size if joined else 1


def _join() -> Transport | None:
    if mpi.launched_size() == 1:
        return None
    connection = mpi.connect()
    if connection.size == 1:
        return None
    _end_together(connection)
    return connection


_training: set[object] = set()
"""Who must not be left alone by a rank that ends."""


def begin(member: object) -> None:
    """From now on, a rank that ends without `end` takes all others with it."""
    _training.add(member)


def end(member: object) -> None:
    """`member` has left the swarm in good order."""
    _training.discard(member)


def _end_together(connection: mpi.MPITransport) -> None:
    """A rank that fails ends the job: otherwise MPI lets the others wait for it for ever."""

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        host = os.uname().nodename
        print(f"rank {connection.rank} on {host} failed:\n{text}", file=sys.stderr, flush=True)
        connection.abort()

    def leave() -> None:
        if _training:
            print(f"rank {connection.rank} ended during training", file=sys.stderr, flush=True)
            connection.abort()

    sys.excepthook = report
    atexit.register(leave)
