"""What a transport does: messages while training runs, a few collectives before and after."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from swarm_tf.buffers import Bytes
from swarm_tf.errors import CollectiveError

Array = npt.NDArray[Any]


def check_same_collective(names: Sequence[str]) -> None:
    """Make sure that all ranks call the same collective; `names` are theirs, in order of ranks.

    Raises:
      CollectiveError: names two ranks that call different ones.
    """
    for rank, collective in enumerate(names):
        if collective != names[0]:
            raise CollectiveError(
                f"rank {rank} is at {collective!r}, but rank 0 at {names[0]!r}; every rank must "
                "train the same, in the same order"
            )


class Transport(ABC):
    """One rank's connection to the others.

    While a driver runs, only its thread calls `send` and `receive`. The training thread calls the
    collectives, before the first local step and after the last; every rank calls the same ones in
    the same order. `isend` and `irecv` are for two ranks that both know which array comes when; the
    module `collectives` is built on them.

    Attributes:
      repeat_seconds: after which an unanswered request is sent again; None on a transport that
        delivers each message once, and those of one rank in their order.
      sessions: trainings begun so far; messages of an earlier one may still arrive.
      bytes_sent: by `isend` so far.
    """

    rank: int
    size: int
    repeat_seconds: float | None = None
    sessions: int = 0
    bytes_sent: int = 0

    @abstractmethod
    def send(self, to: int, head: bytes, payload: Bytes) -> None:
        """Start to send a message; returns at once. The payload may not change afterwards."""

    @property
    def in_transfer(self) -> bool:
        """Whether a message is on its way that needs `receive` to be called for it to move."""
        return False

    @abstractmethod
    def receive(self) -> list[tuple[int, bytes, Bytes]]:
        """(source, head, payload) of the messages that are complete by now; never waits.

        Also advances sends and receives under way.
        """

    @abstractmethod
    def flush(self, timeout: float) -> None:
        """Wait until all that was sent has left.

        Raises:
          TimeoutError: names the ranks that did not receive theirs in time.
        """

    @abstractmethod
    def gather(self, data: bytes, what: str, timeout: float, collective: str = "") -> list[bytes]:
        """Every rank's `data`, on every rank, in order of ranks.

        Args:
          what: names what ranks wait for, in errors.
          collective: its name, which must be the same on all ranks; `what` if it is empty.

        Raises:
          TimeoutError: names `what` and the ranks that did not call it within `timeout` seconds.
          CollectiveError: on all ranks: a rank has left, or calls another collective.
        """

    @abstractmethod
    def leave(self, in_training: bool) -> None:
        """The program of this rank ends: tell the ranks that may wait for it.

        Args:
          in_training: it ends during training, so any rank may wait, not only one in `gather`.
        """

    @abstractmethod
    def has_left(self, rank: int) -> bool:
        """Whether `rank` has announced that its program ends."""

    @abstractmethod
    def broadcast(self, arrays: Sequence[npt.NDArray[np.float32]]) -> None:
        """Overwrite `arrays` with those of rank 0."""

    @abstractmethod
    def isend(self, array: Array, to: int, tag: int) -> Callable[[], bool]:
        """Start to send `array`, contiguous, which may not change until it is sent.

        No array is lost, and those of one `tag`, 0 to 32767, arrive in order.

        Returns:
          a function that advances the transfer, and returns whether it is done.
        """

    @abstractmethod
    def irecv(self, into: Array, source: int, tag: int) -> Callable[[], bool]:
        """Start to receive into `into`, contiguous; the counterpart of `isend`."""
