"""Which checkpoint each rank goes on from; all ranks agree on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swarm_tf.checkpoint.mean import mean_of
from swarm_tf.checkpoint.store import DamagedError, Stage, Store, ranks, stages
from swarm_tf.cluster.world import FIRST_SECONDS, gather_over
from swarm_tf.errors import UsageError
from swarm_tf.transport.base import Transport

_log = logging.getLogger("swarm_tf")

_WHAT = "the checkpoints to go on from"


@dataclass(frozen=True)
class Found:
    """What a rank goes on from.

    Attributes:
      stage: of the files.
      ranks: of the run that goes on.
      step: local steps of this rank at the checkpoint. Of a mean it is the mean; with another
        number of ranks it is scaled, so that it stands for as many passes over the data.
      state: what was saved.
      own: whether it is this rank's own state, not the mean of others'.
      steps: of each rank of the stage whose file was used, by rank.
    """

    stage: Stage
    ranks: int
    step: int
    state: Mapping[str, Any]
    own: bool
    steps: Mapping[int, int]

    @property
    def other_ranks(self) -> bool:
        """Whether the run goes on with another number of ranks."""
        return self.stage.ranks != self.ranks

    @property
    def mean_step(self) -> int:
        """Of the ranks of the stage whose file was used, rounded."""
        return round(float(np.mean(list(self.steps.values()))))

    @property
    def scale(self) -> float:
        """By how much a pass has more local steps per rank than before."""
        return self.stage.ranks / self.ranks


def newest_stage(directory: Path, transport: Transport | None) -> Stage | None:
    """The newest stage that any rank sees; None on all ranks if there is none."""
    here = [[stage.number, stage.ranks] for stage in stages(directory)]
    return max((Stage(*one) for one in _joined(transport, here)), default=None)


def find(directory: Path, transport: Transport | None, stage: Stage) -> Found:
    """What this rank goes on from, of the files of `stage`.

    With as many ranks as in that stage, each rank takes its own latest file that can be read;
    synchronous ranks take those of the latest step that all have. A rank without a file takes the
    mean of all others' states. With another number of ranks, all take the mean of all files; every
    rank must then see the whole directory.

    Raises:
      UsageError: there are files, but none can be read.
    """
    rank, size = (0, 1) if transport is None else (transport.rank, transport.size)
    if stage.ranks == size:
        wanted = [rank]
    else:
        wanted = [other for other in ranks(directory, stage) if other % size == rank]
    files = {other: _Files(Store(directory, stage, other), other) for other in wanted}
    states = {other: one.latest() for other, one in files.items()}
    synchronous = any(one is not None and one[1]["synchronous"] for one in states.values())
    if any(gather_over(transport, synchronous, _WHAT, FIRST_SECONDS)):
        states = _common(files, transport)
    loaded = {other: one for other, one in states.items() if one is not None}
    taken = [[other, step] for other, (step, _) in loaded.items()]
    steps = dict(sorted(_joined(transport, taken)))
    if not steps:
        raise UsageError(
            f"{directory / stage.name} has checkpoints, but none that can be read; move it away "
            "to begin anew"
        )
    lost = sorted(set(range(stage.ranks)) - set(steps))
    if lost and rank == 0:
        _log.warning(
            "rank%s %s: no checkpoint that can be read in %s; the mean of the others takes its "
            "place",
            "s" if len(lost) > 1 else "",
            ", ".join(map(str, lost)),
            directory / stage.name,
        )
    own = loaded.get(rank) if stage.ranks == size else None
    if lost or stage.ranks != size:  # all take part in the mean, also those that need none
        mean = mean_of([state for _, state in loaded.values()], transport)
    if own is not None:
        return Found(stage, size, *own, True, steps)
    step = float(np.mean(list(steps.values()))) * stage.ranks / size
    return Found(stage, size, round(step), mean, False, steps)


class _Files:
    """The files of one rank; the state that was read last is kept.

    Attributes:
      steps: that have a file, the latest first.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self.steps = store.steps()
        self._last: tuple[int, dict[str, Any] | None] = (-1, None)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The latest step and its state; None if no file can be read."""
        for step in self.steps:
            if (state := self.read(step)) is not None:
                return step, state
        return None

    def read(self, step: int) -> dict[str, Any] | None:
        """The state at a step; None, with a warning, if it cannot be read."""
        if self._last[0] != step:
            state = None
            try:
                state = self._store.read(step)
            except DamagedError as error:
                _log.warning("rank %d: %s", self._rank, error)
            self._last = step, state
        return self._last[1]


def _common(
    files: Mapping[int, _Files], transport: Transport | None
) -> dict[int, tuple[int, dict[str, Any]] | None]:
    """Each rank's state at the latest step that every rank with files can read."""
    left = {rank: set(one.steps) for rank, one in files.items()}
    while True:
        mine = [sorted(steps) for steps in left.values() if steps]
        every = _joined(transport, mine)
        common = set.intersection(*map(set, every)) if every else set()
        if not common:
            return dict.fromkeys(files)
        step = max(common)
        states = {
            rank: files[rank].read(step) if step in steps else None for rank, steps in left.items()
        }
        for rank, state in states.items():
            if state is None:
                left[rank].discard(step)
        damaged = any(left[rank] and state is None for rank, state in states.items())
        if not any(gather_over(transport, damaged, _WHAT, FIRST_SECONDS)):
            return {
                rank: None if state is None else (step, state) for rank, state in states.items()
            }


def _joined(transport: Transport | None, mine: list[Any]) -> list[Any]:
    """The lists of all ranks, one after the other."""
    return [one for each in gather_over(transport, mine, _WHAT, FIRST_SECONDS) for one in each]
