"""The progress line that a run prints."""

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
    """The values of the progress line."""

    epoch: float  # passes over the data so far
    epochs: float  # passes in the whole run
    loss: float
    accuracy: float | None = None  # 0..1; None until the first evaluation
    exchanges: int = 0
    bytes_sent: int = 0
    exposed_fraction: float = 0.0  # share of the training time spent waiting for exchanges

    def __str__(self) -> str:
        accuracy = "   -  " if self.accuracy is None else f"{self.accuracy:6.1%}"
        # At most 79 columns, since a wrapped line cannot be rewritten in place.
        return (
            f"epoch {self.epoch:.4g}/{self.epochs:g}  loss {self.loss:.4f}  acc {accuracy}  "
            f"{self.exchanges} exchanges  {self.bytes_sent / 1e6:.1f} MB  "
            f"{self.exposed_fraction:.1%} exposed"
        )


class Progress:
    """Prints the progress line on rank 0: live (rewritten in place) or once per epoch."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """The line is live on a terminal without a launcher; SWARM_TF_LIVE=0 or 1 overrides."""
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
        """Shows the status at the end of an epoch, and starts a new line."""
        if self._live:
            self._rewrite(status, end="\n")
            self._width = 0
        else:
            self._show(f"{status}\n")

    def _rewrite(self, status: Status, end: str) -> None:
        line = str(status)[: shutil.get_terminal_size().columns - 1]
        # Spaces overwrite the rest of a longer previous line.
        self._show(f"\r{line:<{self._width}}{end}")
        self._width = len(line)

    def _show(self, text: str) -> None:
        if self._fails:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:  # the disk is full, or the pipe has no reader
            self._fails = True
            _log.warning("progress is no longer shown (%s)", files.reason(error))
