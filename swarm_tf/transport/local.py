"""The transport between threads of one process, with optional faults.

For tests and for simulations: the messages are the same bytes that MPI would carry.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from swarm_tf.buffers import Bytes
from swarm_tf.transport.base import Array, Transport, check_same_collective


@dataclass(frozen=True)
class Faults:
    """Faults of a network: independent probabilities per message.

    Attributes:
      drop: it never arrives.
      duplicate: it arrives twice.
      corrupt: one random byte of head or payload is changed.
      delay: longest delay in seconds, uniform; messages overtake each other.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    seed: int = 0

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return max(self.drop, self.duplicate, self.corrupt, self.delay) > 0


class LocalNetwork:
    """Connects `size` transports; `network[rank]` is one of them."""

    def __init__(self, size: int, faults: Faults = Faults(), repeat_seconds: float = 0.05) -> None:
        self.size = size
        self.faults = faults
        self.repeat_seconds = repeat_seconds if faults.any else None
        self._rng = np.random.default_rng(faults.seed)
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._inboxes: list[list[tuple[float, int, int, bytes, Bytes]]] = [[] for _ in range(size)]
        self._gathered = threading.Condition()
        self._gathers = [0] * size
        self._tables: dict[int, dict[int, Any]] = {}
        self.arrays: dict[tuple[int, int, int], deque[Array]] = defaultdict(deque)
        self._transports = [LocalTransport(self, rank) for rank in range(size)]

    def __getitem__(self, rank: int) -> LocalTransport:
        return self._transports[rank]

    def deliver(self, source: int, to: int, head: bytes, payload: Bytes) -> None:
        """Put a copy of the message into the inbox of `to`, or damage it on the way."""
        with self._lock:
            copies = 1 - self._happens(self.faults.drop) + self._happens(self.faults.duplicate)
            for _ in range(copies):
                arrives = time.monotonic() + self._rng.uniform(0, self.faults.delay)
                parts = head, payload.copy()
                if self._happens(self.faults.corrupt):
                    parts = self._corrupt(*parts)
                item = arrives, next(self._order), source, *parts
                heapq.heappush(self._inboxes[to], item)

    def collect(self, rank: int) -> list[tuple[int, bytes, Bytes]]:
        """(source, head, payload) of the messages for `rank` that have arrived by now."""
        arrived: list[tuple[int, bytes, Bytes]] = []
        with self._lock:
            inbox = self._inboxes[rank]
            while inbox and inbox[0][0] <= time.monotonic():
                arrived.append(heapq.heappop(inbox)[2:])
        return arrived

    def gather(
        self, rank: int, item: Any, what: str, timeout: float, collective: str = ""
    ) -> list[Any]:
        """Every rank's `item`, on every rank, in order of ranks.

        Raises:
          TimeoutError: names the ranks that did not call it in time.
        """
        with self._gathered:
            number = self._gathers[rank]
            self._gathers[rank] += 1
            table = self._tables.setdefault(number, {})
            table[rank] = collective or what, item
            self._tables.pop(number - 2, None)  # every rank has returned from that one
            self._gathered.notify_all()
            if not self._gathered.wait_for(lambda: len(table) == self.size, timeout):
                missing = sorted(set(range(self.size)) - set(table))
                raise TimeoutError(f"{what}: rank {rank} waited {timeout:g} s for ranks {missing}")
            check_same_collective([table[other][0] for other in range(self.size)])
            return [table[other][1] for other in range(self.size)]

    def _happens(self, probability: float) -> int:
        return int(self._rng.random() < probability)

    def _corrupt(self, head: bytes, payload: Bytes) -> tuple[bytes, Bytes]:
        at = int(self._rng.integers(len(head) + len(payload)))
        flip = np.uint8(1 << self._rng.integers(8))
        if at < len(head):
            damaged = bytearray(head)
            damaged[at] ^= int(flip)
            return bytes(damaged), payload
        payload[at - len(head)] ^= flip
        return head, payload


class LocalTransport(Transport):
    """One rank of a `LocalNetwork`."""

    def __init__(self, network: LocalNetwork, rank: int) -> None:
        self.rank, self.size = rank, network.size
        self.repeat_seconds = network.repeat_seconds
        self._network = network

    def send(self, to: int, head: bytes, payload: Bytes) -> None:
        self._network.deliver(self.rank, to, head, payload)

    def receive(self) -> list[tuple[int, bytes, Bytes]]:
        return self._network.collect(self.rank)

    def flush(self, timeout: float) -> None:
        pass

    def gather(self, data: bytes, what: str, timeout: float, collective: str = "") -> list[bytes]:
        every = self._network.gather(self.rank, data, what, timeout, collective)
        return [bytes(d) for d in every]

    def leave(self, in_training: bool) -> None:
        """Nothing to tell: threads end with their process."""

    def has_left(self, rank: int) -> bool:
        return False

    def broadcast(self, arrays: Sequence[npt.NDArray[np.float32]]) -> None:
        for array in arrays:
            root = self._network.gather(self.rank, array.copy(), "broadcast", 60)[0]
            np.copyto(array, root)

    def isend(self, array: Array, to: int, tag: int) -> Callable[[], bool]:
        self.bytes_sent += array.nbytes
        self._network.arrays[self.rank, to, tag].append(array.copy())
        return lambda: True

    def irecv(self, into: Array, source: int, tag: int) -> Callable[[], bool]:
        waiting = [into]

        def arrived() -> bool:
            queue = self._network.arrays[source, self.rank, tag]
            if waiting and queue:
                np.copyto(waiting.pop(), queue.popleft())
            return not waiting

        return arrived
