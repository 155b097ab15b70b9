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


def refuse_other_places(places: Sequence[str]) -> None:
    """Make sure that all ranks do the same collective; `places` in order of ranks.

    Raises:
      CollectiveError: names two that do not.
    """
    for rank, place in enumerate(places):
        if place != places[0]:
            raise CollectiveError(
                f"rank {rank} is at {place!r}, but rank 0 at {places[0]!r}; every rank must train "
                "the same, in the same order"
            )


class Transport(ABC):
    """One rank's connection to the others.

    While a driver's thread runs, only that calls `send` and `receive`. The collectives belong to
    the training thread, before the first local step and after the last. Every rank calls the
    same collectives in the same order. `isend` and `irecv` are for ranks that both know what
    comes when; `collectives` are made of them.

    Attributes:
      retry_seconds: after which an unanswered request is repeated; None if nothing is ever lost.
      sessions: trainings begun so far; messages of an earlier one may still arrive.
      bytes_sent: by `isend` so far.
    """

    rank: int
    size: int
    retry_seconds: float | None = None
    sessions: int = 0
    bytes_sent: int = 0

    @abstractmethod
    def send(self, to: int, head: bytes, payload: Bytes) -> None:
        """Start to send a message; returns at once. The payload may not change afterwards."""

    @abstractmethod
    def receive(self) -> list[tuple[int, bytes, Bytes]]:
        """(source, head, payload) of the messages that are complete by now; never waits.

        Also moves what is under way.
        """

    @abstractmethod
    def flush(self, timeout: float) -> None:
        """Wait until all that was sent has left.

        Raises:
          TimeoutError: naming the ranks that did not take theirs.
        """

    @abstractmethod
    def gather(self, data: bytes, what: str, timeout: float, place: str = "") -> list[bytes]:
        """Every rank's `data`, on every rank, in order of ranks.

        Args:
          what: this is for.
          place: what must be the same on all ranks, if that is not `what`.

        Raises:
          TimeoutError: naming `what` and the ranks that did not come within `timeout` seconds.
          CollectiveError: on all ranks: one has left, or is at another place.
        """

    @abstractmethod
    def leave(self, in_training: bool) -> None:
        """The program of this rank ends: tell those who may wait for it.

        Args:
          in_training: so that any rank may wait, not only in `gather`.
        """

    @abstractmethod
    def has_left(self, rank: int) -> bool:
        """Whether `rank` has told that its program ends."""

    @abstractmethod
    def broadcast(self, arrays: Sequence[npt.NDArray[np.float32]]) -> None:
        """Overwrite `arrays` with those of rank 0."""

    @abstractmethod
    def isend(self, array: Array, to: int, tag: int) -> Callable[[], bool]:
        """Start to send `array`, contiguous, which may not change until it has left.

        Never lost, and in order for each `tag`, from 0 to 32767.

        Returns:
          a function that tells, and moves on, whether it has left.
        """

    @abstractmethod
    def irecv(self, into: Array, source: int, tag: int) -> Callable[[], bool]:
        """Start to receive into `into`, contiguous; the counterpart of `isend`."""
