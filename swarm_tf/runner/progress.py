"""The line on the screen that shows where a run stands."""

import logging
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TextIO

from swarm_tf import files
from swarm_tf.cluster import environment

_log = logging.getLogger("swarm_tf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a run stands, as shown on one line."""

    epoch: float  # passes made
    epochs: float  # passes in the whole run
    loss: float
    accuracy: float | None = None  # 0..1; None until the first evaluation
    exchanges: int = 0
    bytes_sent: int = 0
    exposed_fraction: float = 0.0  # of the time so far

    def __str__(self) -> str:
        accuracy = "   -  " if self.accuracy is None else f"{self.accuracy:6.1%}"
        # Within 79 columns: a longer line cannot be rewritten in place.
        return (
            f"epoch {self.epoch:.4g}/{self.epochs:g}  loss {self.loss:.4f}  acc {accuracy}  "
            f"{self.exchanges} exchanges  {self.bytes_sent / 1e6:.1f} MB  "
            f"{self.exposed_fraction:.1%} exposed"
        )


class Progress:
    """One line on rank 0: rewritten in place on a terminal, otherwise printed once an epoch."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """A terminal without a launcher has a live line; SWARM_TF_LIVE (0, 1) decides otherwise."""
        self._stream = stream or sys.stdout
        default = "1" if self._stream.isatty() and environment.size() == 1 else "0"
        self._live = os.environ.get("SWARM_TF_LIVE", default) == "1"
        self._width = 0
        self._fails = False

    def update(self, status: Status) -> None:
        """Shows the status within an epoch, if the line is live."""
        if self._live:
            self._rewrite(status, end="")

    def end_epoch(self, status: Status) -> None:
        """Shows the status at the end of an epoch, in a line that stays."""
        if self._live:
            self._rewrite(status, end="\n")
            self._width = 0
        else:
            self._show(f"{status}\n")

    def _rewrite(self, status: Status, end: str) -> None:
        line = str(status)[: shutil.get_terminal_size().columns - 1]
        # Blanks cover the rest of a longer line before.
        self._show(f"\r{line:<{self._width}}{end}")
        self._width = len(line)

    def _show(self, text: str) -> None:
        if self._fails:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:  # a file on a full disk, or a pipe that nobody reads
            self._fails = True
            _log.warning("progress is no longer shown (%s)", files.reason(error))
