"""Synchronous ranks agree on the step at which all stop, or save, since one of them wants to."""

import time
from collections.abc import Mapping
from typing import Any

from swarm_tf.cluster import world
from swarm_tf.transport.base import Transport

_MOST_STEPS = 1000  # between two checks


class StopCheck:
    """Called after each local step; communicates about once a second, at the same step everywhere.

    Args:
      transport: connects to the other ranks.
      step: local steps taken before this training.
      timeout_seconds: longest wait for another rank.

    Attributes:
      next_step: the local step after which the ranks communicate next.
    """

    def __init__(self, transport: Transport, step: int, timeout_seconds: float) -> None:
        self._transport, self._timeout = transport, timeout_seconds
        self.next_step = step + 1
        self._checked_step: int | None = None
        self._checked_at = 0.0

    def __call__(
        self, step: int, requested: Mapping[str, bool], progress: dict[str, Any]
    ) -> frozenset[str]:
        """What all ranks do after local step `step`, since at least one has requested it.

        Args:
          requested: by name, whether this rank wants it.
          progress: values that must be the same on all ranks.

        Raises:
          UsageError: `progress` differs between ranks.
          TimeoutError: another rank does not reach this step in time.
        """
        if step < self.next_step:
            return frozenset()
        what = f"step {step} of all ranks"
        world.agree(self._transport, what, progress, self._timeout)
        seconds = 1.0
        if self._checked_step is not None:
            seconds = (time.monotonic() - self._checked_at) / (step - self._checked_step)
        report = {**requested, "seconds": seconds}
        reports = world.gather_over(self._transport, report, what, self._timeout)
        slowest = max(each["seconds"] for each in reports)
        self.next_step = step + min(max(int(1 / max(slowest, 1e-3)), 1), _MOST_STEPS)
        self._checked_step, self._checked_at = step, time.monotonic()
        return frozenset(name for name in requested if any(each[name] for each in reports))
