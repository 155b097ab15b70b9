"""What each exchange did to this rank's model, written down so that it can be proven afterwards.

One file a rank, a JSON object a line; `python -m swarm_tf.history DIR` reads those of all ranks.
It costs a second decoding of each chunk and a copy of the model at each boundary: for tests, and
for a run that is doubted.
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
      directory: made if it is not there; the same on all ranks, or collected afterwards.
      rank, size: of this rank.
      training: number of the training, the same on all ranks; the file is continued.
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
        """Take down a chunk that was averaged here; other events are left out.

        The responder's correction is written down with the other sign, so both sides write the
        same if they were exact opposites.
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
        """The training thread adds corrections: chunks before and after, and the corrections."""
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
        """The model of a neighbour stands in place of the own one."""
        self._published = self._totals["end"] = _sum(after)
        self._write(kind="adopted")

    def end(self) -> None:
        """The last corrections are in the model; no mean of all is taken yet."""
        self._write(kind="end", **self._totals)

    def _write(self, **entry: Any) -> None:
        line = json.dumps({"training": self._training, "rank": self._rank, **entry})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def _sum(chunks: Iterable[Any]) -> float:
    return sum(float(np.asarray(chunk).sum(dtype=np.float64)) for chunk in chunks)
