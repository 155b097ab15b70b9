"""Synchronous ranks agree on the step at which a signal to one of them ends the training."""

import time
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

    def __call__(self, step: int, requested: bool, progress: dict[str, Any]) -> bool:
        """Whether all ranks stop after local step `step`.

        Args:
          requested: whether this rank has received a signal to stop.
          progress: values that must be the same on all ranks.

        Raises:
          UsageError: `progress` differs between ranks.
          TimeoutError: another rank does not reach this step in time.
        """
        if step < self.next_step:
            return False
        what = f"step {step} of all ranks"
        world.agree(self._transport, what, progress, self._timeout)
        seconds = 1.0
        if self._checked_step is not None:
            seconds = (time.monotonic() - self._checked_at) / (step - self._checked_step)
        report = {"stop": requested, "seconds": seconds}
        reports = world.gather_over(self._transport, report, what, self._timeout)
        slowest = max(each["seconds"] for each in reports)
        self.next_step = step + min(max(int(1 / max(slowest, 1e-3)), 1), _MOST_STEPS)
        self._checked_step, self._checked_at = step, time.monotonic()
        return any(each["stop"] for each in reports)
