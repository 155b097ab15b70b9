"""A record of what each exchange did to this rank's model, to be checked afterwards.

One file per rank, one JSON object per line; `python -m swarm_tf.history DIR` reads those of all
ranks. It costs a second decoding of each chunk and a copy of the model at each boundary: for tests,
and for runs that one wants to verify.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from swarm_tf.events import ChunkAveraged, Event


class Record:
    """The file of one rank in one training.

    Args:
      directory: created if missing; the same on all ranks, or collected afterwards.
      rank, size: of this rank.
      training: number of the training, the same on all ranks; its entries are appended.
      mode: of the swarm.
    """

    def __init__(
        self, directory: str | os.PathLike[str], rank: int, size: int, training: int, mode: str
    ) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._path = Path(directory) / f"rank{rank}.jsonl"
        self._rank, self._training = rank, training
        # Sums over all weights, in float64.
        self._totals = dict.fromkeys(
            ("start", "end", "steps", "corrections", "withheld", "size"), 0.0
        )
        self._published: float | None = None
        self._write(kind="start", ranks=size, mode=mode)

    def note(self, event: Event) -> None:
        """Record a chunk that was averaged here; other events are ignored.

        The responder's correction is written with the opposite sign, so both sides write the same
        if they were exact opposites.
        """
        if not isinstance(event, ChunkAveraged):
            return
        values = np.asarray(event.correction, np.float32)
        if event.withheld:
            self._totals["withheld"] += float(values.sum(dtype=float))
        values = (values if event.initiator == self._rank else -values) + np.float32(0)  # no -0
        self._write(
            kind="averaged",
            initiator=event.initiator,
            exchange=event.exchange,
            chunk=event.chunk,
            applied=int(event.accepted.sum()),
            skipped=int((~event.accepted).sum()),
            correction=zlib.crc32(values.tobytes()),
        )

    def boundary(
        self, before: Iterable[Any], corrections: Iterable[Any], after: Iterable[Any]
    ) -> None:
        """Record a boundary: chunks before corrections were added, corrections, chunks after."""
        here, there = _sum(before), _sum(after)
        if self._published is None:
            self._totals["start"] = here
        else:
            self._totals["steps"] += here - self._published
        self._totals["corrections"] += there - here
        given = [c for c in corrections if c is not None]
        self._totals["size"] += sum(float(np.abs(np.asarray(c)).sum(dtype=float)) for c in given)
        self._published = self._totals["end"] = there

    def adopted(self, after: Iterable[Any]) -> None:
        """Record that a neighbour's model has replaced this rank's."""
        self._published = self._totals["end"] = _sum(after)
        self._write(kind="adopted")

    def end(self) -> None:
        """Record the end: the last corrections are in the model, the final mean is not."""
        self._write(kind="end", **self._totals)

    def _write(self, **entry: Any) -> None:
        line = json.dumps({"training": self._training, "rank": self._rank, **entry})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def _sum(chunks: Iterable[Any]) -> float:
    return sum(float(np.asarray(chunk).sum(dtype=np.float64)) for chunk in chunks)
