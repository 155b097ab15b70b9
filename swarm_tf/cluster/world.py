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

_REPORT_SECONDS = 3.0
"""How long other ranks stay, so that rank 0 can print why all are refused."""

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
    return joined.rank if joined else _parent[0]


def size() -> int:
    """How many ranks train; 1 when alone; in a child process as in its parent."""
    joined = transport()
    return joined.size if joined else _parent[1]


_parent = environment.parent() or (0, 1)
"""Rank and size in a process that has not joined: a rank's data worker reads that rank's data."""


def is_child() -> bool:
    """Whether a rank has started this process, so that it is no rank itself."""
    return _parent != (0, 1)


def _after_fork_in_child() -> None:
    """A forked process is no rank: it has no transport, and its end does not end the job."""
    global _lock, _parent
    _lock = threading.Lock()  # another thread may have held it
    joined = _joined[0] if _joined else None
    if joined is not None:
        _parent = joined.rank, joined.size
        _joined[:] = [None]
        _training.clear()
        sys.excepthook = sys.__excepthook__


os.register_at_fork(after_in_child=_after_fork_in_child)


def is_rank_zero() -> bool:
    """Whether this is rank 0; according to the launcher, where MPI could not be started."""
    if _joined:
        return rank() == 0
    return environment.rank() == 0


def _join() -> Transport | None:
    if environment.size() == 1:
        return None
    try:
        connection = mpi_start.connect(START_SECONDS)
    except UsageError:
        # A launcher ends all ranks when one exits: wait, so that rank 0 can say why.
        if not is_rank_zero():
            time.sleep(_REPORT_SECONDS)
        raise
    if connection.size == 1:
        return None
    environment.mark_joined(connection.rank, connection.size)
    if "tensorflow" in sys.modules:  # otherwise `Algorithm` claims it, or train.py
        devices.claim_gpu_if_possible()
    _end_job_on_failure(connection)
    return connection


class Participant(Protocol):
    """What trains with other ranks, such as an `Algorithm`."""

    def abandon(self, *, exits: bool = False) -> None:
        """Release it: its training failed, or the program ends during training (`exits`)."""


_training: set[Participant] = set()
"""Whose training has begun and not ended."""


def begin_training(participant: Participant) -> None:
    """From now on, if this program ends before `end_training`, it tells the others to end too."""
    _training.add(participant)


def end_training(participant: Participant) -> None:
    """`participant` has ended its training cleanly."""
    _training.discard(participant)


def unfinished() -> list[Participant]:
    """Whose training has begun and not ended."""
    return list(_training)


def _end_job_on_failure(connection: MPITransport) -> None:
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
        # Whether an exception was handled can't be known here. If others still train, this ends
        # them; if none does, it changes nothing.
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
    """A refusal that is raised on every rank."""


def run_on_all_ranks(
    action: Callable[[], T], what: str = "the start", seconds: float = START_SECONDS
) -> T:
    """Do `action` on every rank; if it raises UsageError on one, refuse it on all.

    Calls may be nested. A rank that is refused before its inner call is then in its outer call
    while the others are in their inner one: all are refused, and leave both calls.

    Args:
      what: names what ranks wait for, in the error if one is late.
      seconds: longest wait for other ranks.

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
        everyones = joined.gather(reason.encode(), what, seconds, collective="run_on_all_ranks")
        reasons = [r.decode() for r in everyones]
    for of, reason in enumerate(reasons):
        if reason:
            raise RefusedOnAllRanks(reason if all(reasons) else f"rank {of}: {reason}")
    return result  # type: ignore[return-value]


def run_on_rank_zero(action: Callable[[], None], what: str) -> None:
    """Do `action` on rank 0 while the others wait; returns on all when it is done.

    Args:
      what: names the result, in the error of a rank that waits too long.

    Raises:
      RefusedOnAllRanks: on every rank, if it is refused on rank 0.
    """
    run_on_all_ranks(lambda: action() if rank() == 0 else None, what, FIRST_SECONDS)


def gather(value: Any, what: str, seconds: float = START_SECONDS) -> list[Any]:
    """Every rank's `value`, which JSON must be able to hold, in order of ranks.

    Args:
      what: names what ranks wait for, in the error if one is late.
      seconds: longest wait for other ranks.
    """
    return gather_over(transport(), value, what, seconds)


def gather_over(
    joined: Transport | None, value: Any, what: str, seconds: float = START_SECONDS
) -> list[Any]:
    """`gather` over the transport `joined`; None is one rank alone."""
    if joined is None:
        return [value]
    return [json.loads(one) for one in joined.gather(json.dumps(value).encode(), what, seconds)]


def agree(
    joined: Transport | None, what: str, value: dict[str, Any], seconds: float = START_SECONDS
) -> None:
    """Make sure that the flat dictionary `value` is the same on all ranks of a transport.

    Args:
      what: names what ranks wait for, in the error if one is late.
      seconds: longest wait for other ranks.

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
