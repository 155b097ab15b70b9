"""This process among all ranks: `rank()`, `size()`, and how a failing rank ends the job."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TypeVar

from swarm_tf.cluster import devices, environment, mpi_start
from swarm_tf.errors import UsageError
from swarm_tf.transport.base import Transport
from swarm_tf.transport.mpi import MPITransport

START_SECONDS = 600.0
"""How long ranks may lag behind each other before training."""

FIRST_SECONDS = 3600.0
"""How long rank 0 may work for all, such as tokenizing a data set."""

_LAST_WORDS_SECONDS = 3.0

T = TypeVar("T")

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
    """This rank's number, from 0; 0 when alone; in a child process its parent's."""
    joined = transport()
    return joined.rank if joined else _of_parent[0]


def size() -> int:
    """How many ranks train; 1 when alone; in a child process as in its parent."""
    joined = transport()
    return joined.size if joined else _of_parent[1]


_of_parent = environment.parent() or (0, 1)
"""Rank and size in a process that has not joined: a rank's data worker reads that rank's part."""


def is_child() -> bool:
    """Whether a rank has started this process, so that it is no rank itself."""
    return _of_parent != (0, 1)


def _after_fork_in_child() -> None:
    """What a rank forks is a plain process: it has no transport, and ends nobody by its end."""
    global _lock, _of_parent
    _lock = threading.Lock()  # another thread may have held it
    joined = _joined[0] if _joined else None
    if joined is not None:
        _of_parent = joined.rank, joined.size
        _joined[:] = [None]
        _training.clear()
        sys.excepthook = sys.__excepthook__


os.register_at_fork(after_in_child=_after_fork_in_child)


def is_first() -> bool:
    """Whether this is rank 0 by what the launcher says, also where MPI could not be started."""
    if _joined:
        return rank() == 0
    return environment.rank() == 0


def _join() -> Transport | None:
    if environment.size() == 1:
        return None
    try:
        connection = mpi_start.connect(START_SECONDS)
    except UsageError:
        # A launcher ends all when one exits: wait, so that rank 0 can say why.
        if not is_first():
            time.sleep(_LAST_WORDS_SECONDS)
        raise
    if connection.size == 1:
        return None
    environment.joined(connection.rank, connection.size)
    if "tensorflow" in sys.modules:  # otherwise `Algorithm` does it, or train.py
        devices.claim_gpu_if_possible()
    _end_together(connection)
    return connection


class Participant(Protocol):
    """One who trains with other ranks."""

    def abandon(self, *, exits: bool = False) -> None:
        """Let go of it: its training failed, or the program ends in its middle (`exits`)."""


_training: set[Participant] = set()
"""Who must not leave the others without a word."""


def begin(participant: Participant) -> None:
    """From now on, a rank that ends without `end` says so, and the others end too."""
    _training.add(participant)


def end(participant: Participant) -> None:
    """`participant` has left the swarm in good order."""
    _training.discard(participant)


def unfinished() -> list[Participant]:
    """Who has begun and not ended."""
    return list(_training)


def _end_together(connection: MPITransport) -> None:
    """A rank that fails ends the job: otherwise MPI lets the others wait for it for ever."""

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        host = os.uname().nodename
        print(f"rank {connection.rank} on {host} failed:\n{text}", file=sys.stderr, flush=True)
        connection.abort()

    def leave() -> None:
        if os.getpid() != joined:
            return
        # It can't be told here whether an exception was handled. If others still train, this
        # message ends them; if none does, no harm is done.
        unfinished = list(_training)
        if unfinished:
            print(f"rank {connection.rank} ended during training", file=sys.stderr, flush=True)
        for participant in unfinished:
            with contextlib.suppress(Exception):
                participant.abandon(exits=True)
        connection.leave(in_training=bool(unfinished))

    joined = os.getpid()
    sys.excepthook = report
    atexit.register(leave)


class RefusedOnAllRanks(UsageError):
    """Every rank knows of it."""


def run_on_all_ranks(
    action: Callable[[], T], what: str = "the start", seconds: float = START_SECONDS
) -> T:
    """Do `action` on every rank; if it is refused on one, refuse it on all.

    When nested, a rank that is refused before the inner call meets the others, which are in their
    inner one, in its outer one: all are refused, and leave both.

    Args:
      what: is waited for, if ranks are late.
      seconds: how long.

    Raises:
      RefusedOnAllRanks: on every rank, with the reason of the first rank that has one.
    """
    result, reason = None, ""
    try:
        result = action()
    except RefusedOnAllRanks:
        raise
    except UsageError as error:
        reason = str(error)
    joined = transport()
    reasons = [reason]
    if joined:
        everyones = joined.gather(reason.encode(), what, seconds, place="run_on_all_ranks")
        reasons = [r.decode() for r in everyones]
    for of, reason in enumerate(reasons):
        if reason:
            raise RefusedOnAllRanks(reason if all(reasons) else f"rank {of}: {reason}")
    return result  # type: ignore[return-value]


def run_on_rank_zero(action: Callable[[], None], what: str) -> None:
    """Do `action` on rank 0 while the others wait; returns on all when it is done.

    Args:
      what: the result, which the error of a rank that waits too long names.

    Raises:
      RefusedOnAllRanks: on every rank, if it is refused on rank 0.
    """
    run_on_all_ranks(lambda: action() if rank() == 0 else None, what, FIRST_SECONDS)


def gather(value: Any, what: str, seconds: float = START_SECONDS) -> list[Any]:
    """`value`, which JSON can hold, of every rank, in their order.

    Args:
      what: is waited for, if ranks are late.
      seconds: how long.
    """
    return gather_over(transport(), value, what, seconds)


def gather_over(
    joined: Transport | None, value: Any, what: str, seconds: float = START_SECONDS
) -> list[Any]:
    """`gather` over a transport that need not be the process's own; None is one rank alone."""
    if joined is None:
        return [value]
    return [json.loads(one) for one in joined.gather(json.dumps(value).encode(), what, seconds)]


def agree(
    joined: Transport | None, what: str, value: dict[str, Any], seconds: float = START_SECONDS
) -> None:
    """Make sure that the flat dictionary `value` is the same on all ranks of a transport.

    Args:
      what: is waited for, if ranks are late.
      seconds: how long.

    Raises:
      UsageError: on every rank; names the first key that differs, and both values.
    """
    check_equal(gather_over(joined, value, what, seconds))


def check_equal(every: list[dict[str, Any]]) -> None:
    """Make sure that all ranks' dictionaries, in order of ranks, are the same.

    Raises:
      UsageError: names the first key that differs, and both values.
    """
    first, *others = every
    for of, other in enumerate(others, 1):
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise UsageError(
                    f"{key} must be the same on all ranks, but is {_short(first.get(key))} on "
                    f"rank 0 and {_short(other.get(key))} on rank {of}"
                )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
