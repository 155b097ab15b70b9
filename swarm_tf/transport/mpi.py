"""The transport over MPI, through mpi4py; the only module that imports it.

Two-sided messages with a progress thread of our own: one-sided windows stall for seconds on
common MPIs while the target computes. Blocking MPI calls spin a core, so all waiting is polling
and sleeping, and every wait has a deadline and an error that names the ranks it waited for.
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from swarm_tf import buffers
from swarm_tf.buffers import Bytes
from swarm_tf.errors import CollectiveError
from swarm_tf.transport.base import Array, Transport, check_same_collective

_HEAD, _HEAD_WITH_PAYLOAD, _PAYLOAD, _GATHER, _TABLE, _LEFT = range(1, 7)
_GOOD, _BAD, _LATE = range(3)
_NOTIFY_SECONDS = 1.0


def load() -> Any:
    """mpi4py's MPI, not started yet.

    Raises:
      ImportError, RuntimeError: there is no mpi4py, or it finds no MPI.
    """
    import mpi4py

    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    from mpi4py import MPI

    return MPI


class MPITransport(Transport):
    """This rank in `world`, on communicators of its own."""

    def __init__(self, mpi: Any, world: Any) -> None:
        self.rank, self.size = world.rank, world.size
        self._mpi, self._world = mpi, world
        self._messages, self._collectives, self._arrays = (world.Dup() for _ in range(3))
        self._sending: list[tuple[Any, int, Any]] = []
        self._left: set[int] = set()
        self._transfers: dict[int, tuple[Any, Array]] = {}
        self._heads: dict[int, tuple[Any, Bytes]] = {}
        self._receiving: list[tuple[int, list[Any], Bytes, Bytes]] = []

    def abort(self) -> None:
        """End all ranks now."""
        self._world.Abort(1)

    # Messages.

    def send(self, to: int, head: bytes, payload: Bytes) -> None:
        tag = _HEAD_WITH_PAYLOAD if payload.size else _HEAD
        self._sending.append((self._messages.Isend(head, to, tag), to, head))
        if payload.size:
            self._sending.append((self._messages.Isend(payload, to, _PAYLOAD), to, payload))

    @property
    def in_transfer(self) -> bool:
        return bool(self._sending or self._heads or self._receiving)

    def receive(self) -> list[tuple[int, bytes, Bytes]]:
        mpi, complete = self._mpi, []
        status = mpi.Status()
        while message := self._messages.Improbe(mpi.ANY_SOURCE, mpi.ANY_TAG, status):
            source, tag = status.Get_source(), status.Get_tag()
            data = buffers.empty(status.Get_count(mpi.BYTE))
            request = message.Irecv(data)
            if tag == _HEAD:
                self._receiving.append((source, [request], data, np.zeros(0, np.uint8)))
            elif tag == _HEAD_WITH_PAYLOAD:
                self._heads[source] = request, data
            else:  # MPI keeps the order of one sender's messages: the head came just before
                head_request, head = self._heads.pop(source)
                self._receiving.append((source, [head_request, request], head, data))
        under_way = []
        for source, requests, head, payload in self._receiving:
            if mpi.Request.Testall(requests):
                complete.append((source, head.tobytes(), payload))
            else:
                under_way.append((source, requests, head, payload))
        self._receiving = under_way
        self._sending = [item for item in self._sending if not item[0].Test()]
        return complete

    def flush(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._sending:
            self._sending = [item for item in self._sending if not item[0].Test()]
            if time.monotonic() > deadline:
                ranks = sorted({to for _, to, _ in self._sending})
                raise TimeoutError(f"rank {self.rank} waited {timeout:g} s to send to {ranks}")
            time.sleep(0.001)

    # Collectives.

    def gather(self, data: bytes, what: str, timeout: float, collective: str = "") -> list[bytes]:
        here = (collective or what).encode()
        part = struct.pack("<I", len(here)) + here + data
        if self.rank == 0:
            return self._gather_on_root(part, what, timeout)
        send = self._collectives.Isend(part, 0, _GATHER)
        self._wait(send, f"{what}: rank {self.rank} waited for rank 0", timeout)
        deadline = time.monotonic() + timeout + 10  # rank 0 gives up first: it knows who is missing
        left = False
        while (reply := self._receive_now(0, _TABLE)) is None:
            if left:
                self._raise_left(0, what)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: rank {self.rank} waited {timeout:g} s for rank 0")
            left = self.has_left(0)  # what it sent before leaving has arrived: check once more
            time.sleep(0.001)
        verdict, body = reply[1][0], reply[1][1:]
        if verdict != _GOOD:
            raise (TimeoutError if verdict == _LATE else CollectiveError)(body.decode())
        sizes = struct.unpack_from(f"<{self.size}Q", body)
        ends = itertools.accumulate(sizes, initial=8 * self.size)
        return [body[a:b] for a, b in itertools.pairwise(ends)]

    def _gather_on_root(self, own: bytes, what: str, timeout: float) -> list[bytes]:
        """Rank 0: receive every rank's part, and send all the table, or why there is none."""
        parts, left = {0: own}, list[int]()
        deadline = time.monotonic() + timeout
        try:
            while len(parts) < self.size:
                missing = [rank for rank in range(self.size) if rank not in parts]
                if (part := self._receive_now(self._mpi.ANY_SOURCE, _GATHER)) is not None:
                    parts[part[0]] = part[1]
                elif left:
                    self._raise_left(left[0], what)
                elif time.monotonic() > deadline:
                    raise TimeoutError(f"{what}: rank 0 waited {timeout:g} s for ranks {missing}")
                else:
                    left = [rank for rank in missing if self.has_left(rank)]
                    time.sleep(0.001)
            split = [4 + struct.unpack_from("<I", parts[rank])[0] for rank in range(self.size)]
            check_same_collective([parts[rank][4:end].decode() for rank, end in enumerate(split)])
        except (TimeoutError, CollectiveError) as error:
            verdict = bytes([_LATE if isinstance(error, TimeoutError) else _BAD])
            self._notify([rank for rank in parts if rank], verdict + str(error).encode(), _TABLE)
            raise
        table = [parts[rank][end:] for rank, end in enumerate(split)]
        lengths = struct.pack(f"<{self.size}Q", *map(len, table))
        reply = bytes([_GOOD]) + lengths + b"".join(table)
        sends = [self._collectives.Isend(reply, to, _TABLE) for to in range(1, self.size)]
        for to, send in enumerate(sends, start=1):
            self._wait(send, f"{what}: rank 0 waited for rank {to}", timeout)
        return table

    # Leaving.

    def leave(self, in_training: bool) -> None:
        everybody = in_training or self.rank == 0
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._notify(others if everybody else [0], b"", _LEFT)

    def _notify(self, ranks: Sequence[int], data: bytes, tag: int) -> None:
        """Send to all of them, and wait a second at most until they have received it."""
        sends = [self._collectives.Isend(data, rank, tag) for rank in ranks]
        deadline = time.monotonic() + _NOTIFY_SECONDS
        while not self._mpi.Request.Testall(sends) and time.monotonic() < deadline:
            time.sleep(0.001)

    def has_left(self, rank: int) -> bool:
        status = self._mpi.Status()
        while message := self._collectives.Improbe(self._mpi.ANY_SOURCE, _LEFT, status):
            message.Recv(np.empty(0, np.uint8))
            self._left.add(status.Get_source())
        return rank in self._left

    def _raise_left(self, rank: int, what: str) -> NoReturn:
        raise CollectiveError(
            f"{what}: rank {rank} has left (its program ended) while others wait for it"
        )

    def _receive_now(self, source: int, tag: int) -> tuple[int, bytes] | None:
        status = self._mpi.Status()
        message = self._collectives.Improbe(source, tag, status)
        if message is None:
            return None
        buffer = np.empty(status.Get_count(self._mpi.BYTE), np.uint8)
        message.Recv(buffer)
        return status.Get_source(), buffer.tobytes()

    def _wait(self, request: Any, what: str, timeout: float = 600.0) -> None:
        deadline = time.monotonic() + timeout
        while not request.Test():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} for {timeout:g} s")
            time.sleep(0.001)

    def broadcast(self, arrays: Sequence[npt.NDArray[np.float32]]) -> None:
        for array in arrays:
            request = self._collectives.Ibcast(array, root=0)
            self._wait(request, f"rank {self.rank} waited for the broadcast of rank 0")

    # Arrays.

    def isend(self, array: Array, to: int, tag: int) -> Callable[[], bool]:
        self.bytes_sent += array.nbytes
        return self._keep_until_done(self._arrays.Isend(array, to, tag), array)

    def irecv(self, into: Array, source: int, tag: int) -> Callable[[], bool]:
        return self._keep_until_done(self._arrays.Irecv(into, source, tag), into)

    def _keep_until_done(self, request: Any, array: Array) -> Callable[[], bool]:
        """A function that tests `request`; its array is kept until the request is done.

        The caller may give up, as after an error: MPI would then use memory that is free.
        """
        self._transfers[id(request)] = request, array

        def test() -> bool:
            over = bool(request.Test())
            if over:
                self._transfers.pop(id(request), None)
            return over

        return test
