"""Collectives over arrays that all ranks call: means, and sends with receives.

A collective is a generator that advances its transfers each time it is resumed, so that many can
be under way at once, on the caller's thread (`run`) or in the background (`Background`). A tag
tells them apart, so ranks may start them in different orders.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from swarm_tf.errors import CollectiveError
from swarm_tf.transport.base import Array, Transport

Collective = Generator[None, None, None]

TAGS = 2**15
"""MPI guarantees no more tags than these."""

_LEFT_CHECK_SECONDS = 0.5
_PIECE = 2**20  # numbers sent at once, with a deadline of their own
_SHORTEST_SLEEP = 0.0001
_LONGEST_SLEEP = 0.0005  # a rank in a ring often waits for its neighbours


def session_tag(transport: Transport, number: int) -> int:
    """The tag of collective `number` in this training; a failed one may still have messages."""
    return (1009 * transport.sessions + number) % TAGS


def mean(transport: Transport, array: Array, tag: int, timeout: float) -> Collective:
    """Overwrite `array`, float [n], with its mean over all ranks, the same bits everywhere.

    A ring all-reduce (Patarasuk and Yuan 2009): every rank sums up one part of the array and
    passes it round, so each sends 2 (N - 1) / N times the array, the least that is possible.

    Raises:
      TimeoutError: a neighbour sends or receives nothing for `timeout` seconds; names it.
    """
    rank, size = transport.rank, transport.size
    right, left = (rank + 1) % size, (rank - 1) % size
    parts = np.array_split(array, size)
    received = np.empty_like(parts[0])
    for step in range(size - 1):
        part = parts[(rank - step - 1) % size]
        into = received[: len(part)]
        yield from sendrecv(
            transport, {right: parts[(rank - step) % size]}, {left: into}, tag, timeout
        )
        part += into
    parts[right] /= size
    for step in range(size - 1):
        whole, into = parts[(right - step) % size], parts[(rank - step) % size]
        yield from sendrecv(transport, {right: whole}, {left: into}, tag, timeout)


def sendrecv(
    transport: Transport, out: dict[int, Array], into: dict[int, Array], tag: int, timeout: float
) -> Collective:
    """Send arrays to the ranks of `out` and receive from those of `into`, all at once.

    Raises:
      TimeoutError: for `timeout` seconds one of them has not sent or received the next few MiB.
    """
    longest = max((len(array) for array in [*out.values(), *into.values()]), default=0)
    for start in range(0, max(longest, 1), _PIECE):
        piece = slice(start, start + _PIECE)
        outgoing = {to: array[piece] for to, array in out.items()}
        incoming = {source: array[piece] for source, array in into.items()}
        yield from _sendrecv_piece(transport, outgoing, incoming, tag % TAGS, timeout)


def _sendrecv_piece(
    transport: Transport, out: dict[int, Array], into: dict[int, Array], tag: int, timeout: float
) -> Collective:
    pending: list[tuple[int, Callable[[], bool]]] = [
        *((source, transport.irecv(array, source, tag)) for source, array in into.items()),
        *((to, transport.isend(array, to, tag)) for to, array in out.items()),
    ]
    began = checked = time.monotonic()
    left: list[int] = []
    while pending := [(other, done) for other, done in pending if not done()]:
        now = time.monotonic()
        ranks = sorted({other for other, _ in pending})
        if now - began > timeout:
            raise TimeoutError(f"rank {transport.rank} waited {timeout:g} s for ranks {ranks}")
        if now - checked > _LEFT_CHECK_SECONDS:
            checked = now
            if set(left).intersection(ranks):  # what they sent before has had time to arrive
                raise CollectiveError(
                    f"rank {transport.rank} waits for ranks {left}, whose programs have ended"
                )
            left = [rank for rank in ranks if transport.has_left(rank)]
        yield


def average(transport: Transport, arrays: Sequence[Array], timeout: float) -> None:
    """Overwrite `arrays` with their means over all ranks; see `mean`."""
    run([mean(transport, array, tag, timeout) for tag, array in enumerate(arrays)])


def run(collectives: Sequence[Collective], longest_sleep: float = _LONGEST_SLEEP) -> None:
    """Carry out the collectives, all at once, on this thread.

    Args:
      longest_sleep: most seconds between two turns.
    """
    collectives, sleep = list(collectives), _SHORTEST_SLEEP
    while collectives := [collective for collective in collectives if not _advance(collective)]:
        time.sleep(sleep)
        sleep = min(1.1 * sleep, longest_sleep)


def _advance(collective: Collective) -> bool:
    """Resume a collective; whether it is over."""
    return next(collective, _END) is _END


_END: Any = object()


class Handle:
    """A collective in the background."""

    def __init__(self, collective: Collective) -> None:
        self.collective = collective
        self.error: BaseException | None = None
        self.over = threading.Event()

    def wait(self) -> None:
        """Wait until it is over.

        Raises:
          the exception that ended the collective.
        """
        self.over.wait()  # the collective has deadlines of its own
        if self.error is not None:
            raise self.error


class Background(threading.Thread):
    """Carries out collectives while the caller computes, until `stop`."""

    def __init__(self, rank: int) -> None:
        super().__init__(name=f"swarm-tf collectives of rank {rank}", daemon=True)
        self._collectives: list[Handle] = []
        self._changed = threading.Condition()
        self._stopped = False

    def submit(self, collective: Collective) -> Handle:
        """Begin `collective`; returns at once."""
        handle = Handle(collective)
        with self._changed:
            if self._stopped:
                raise RuntimeError("the background thread has been stopped")
            self._collectives.append(handle)
            self._changed.notify()
        return handle

    def stop(self, wait: bool = True) -> None:
        """End the thread when its collectives are done.

        Args:
          wait: return only then; not after a failed training, where ranks may never answer.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if wait:
            self.join()

    def run(self) -> None:
        """Advance all collectives in turn."""
        sleep = _SHORTEST_SLEEP
        while True:
            with self._changed:
                if not self._collectives:
                    sleep = _SHORTEST_SLEEP
                    self._changed.wait_for(lambda: self._collectives or self._stopped)
                if not self._collectives:
                    return
                collectives = list(self._collectives)
            if done := [handle for handle in collectives if self._advance(handle)]:
                sleep = _SHORTEST_SLEEP
                with self._changed:
                    self._collectives = [
                        handle for handle in self._collectives if handle not in done
                    ]
            time.sleep(sleep)
            sleep = min(1.1 * sleep, _LONGEST_SLEEP)

    def _advance(self, handle: Handle) -> bool:
        try:
            over = _advance(handle.collective)
        except BaseException as error:
            handle.error, over = error, True
        if over:
            handle.over.set()
        return over
