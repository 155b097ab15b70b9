"""What a run tells: counters, metrics.jsonl, summary.json, TensorBoard, and a line on the screen.

NaN and infinities are written as null: JSON has no number for them, and pandas reads null as NaN.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from swarm_tf import launcher
from swarm_tf.errors import UsageError


@dataclass(frozen=True, slots=True)
class Counters:
    """What one rank counted. Immutable, so one thread may read what another one replaces.

    `total += Counters(exchanges=1, bytes_sent=n)` counts an exchange.
    """

    exchanges: int = 0  # initiated here and applied
    exchanges_failed: int = 0  # initiated here and given up or refused
    exchanges_served: int = 0  # initiated by others, answered here
    bytes_sent: int = 0  # everything: headers, replies, repetitions
    messages_dropped: int = 0  # damaged, or of another model or version
    payload_bytes: int = 0  # the encoded models in the requests of `exchanges`
    blocks_skipped: int = 0  # whose checksum failed, of blocks_total
    blocks_total: int = 0
    exposed_seconds: float = 0.0  # the training loop stood still for averaging
    staleness_sum: int = 0  # local steps between publish and apply
    staleness_count: int = 0
    adoptions: int = 0  # a neighbour's model was taken in place of one with NaN or Inf

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(
            *(getattr(self, item.name) + getattr(other, item.name) for item in fields(self))
        )

    @property
    def staleness_mean(self) -> float:
        """Local steps between publish and apply; 0 before the first exchange."""
        return self.staleness_sum / max(self.staleness_count, 1)

    @property
    def payload_bytes_per_exchange(self) -> float:
        """Bytes of one encoded model; 0 before the first exchange."""
        return self.payload_bytes / max(self.exchanges, 1)


def merge(counters: Iterable[Counters]) -> Counters:
    """The sums over all ranks; `exposed_seconds` too, so divide it by the ranks."""
    return sum(counters, start=Counters())


@dataclass(frozen=True, kw_only=True)
class Summary:
    """summary.json: a whole run, all ranks together."""

    algorithm: str
    ranks: int
    survivors: int
    parameters: int
    local_steps_total: int
    epochs: float
    ended_by: str | None  # the signal that ended it early; the mean model was not tested then
    wall_seconds: float
    train_seconds: float
    examples_per_second: float
    final: dict[str, Any]  # loss, accuracy, ... of the mean model on the test split
    per_rank_accuracy: dict[str, float]  # min and max of the separate models
    exchanges: int
    exchanges_failed: int
    bytes_sent: int
    payload_bytes_per_exchange: float
    blocks_skipped: int
    exposed_seconds: float  # a rank's mean
    exposed_fraction: float  # of train_seconds
    data_wait_fraction: float  # of train_seconds: steps waited for the input pipeline
    step_seconds_median: float
    steps_per_second: dict[str, float]  # min, mean and max over ranks, exchanges included
    staleness_mean: float  # local steps
    consensus_distance: float  # root mean square distance to the mean model, over its norm

    def __str__(self) -> str:
        if self.ended_by:
            return (
                f"{self.ended_by} ended the training after {self.epochs:.4g} epochs; "
                "consensus.weights.h5 has the mean model, which was not tested"
            )
        final, each = self.final.get("accuracy", math.nan), self.per_rank_accuracy
        alone = f" (mean model; separate ones {each['min']:.2%} to {each['max']:.2%})"
        bleu = f"BLEU {self.final['bleu']:.2f}, " if "bleu" in self.final else ""
        return (
            f"{bleu}accuracy {final:.2%}{alone if self.ranks > 1 else ''}, "
            f"{self.train_seconds:.1f} s of training, {self.examples_per_second:,.0f} examples/s; "
            f"of the time {self.exposed_fraction:.1%} waiting for exchanges, "
            f"{self.data_wait_fraction:.1%} for data"
        )


def check_writable(workdir: str | os.PathLike[str]) -> None:
    """Creates `workdir` and tries a file in it, so that a run does not fail at its end.

    Raises:
      UsageError: if the directory cannot be created or written.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        # Not os.access: root may "write" to read-only file systems by its answer.
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be written ({error.strerror}); "
            "name a directory that can be created or written"
        ) from error


class MetricsWriter:
    """Writes the files of a run into its workdir: on rank 0; elsewhere every call does nothing.

    Files of an earlier run in the same workdir are replaced, not continued: a stale
    summary.json, or stale weights, must not pass for the result of a run that failed.
    """

    def __init__(self, workdir: str | os.PathLike[str], rank: int = 0) -> None:
        """Raises UsageError if rank 0 cannot write to `workdir`."""
        self._workdir = Path(workdir)
        self._rank = rank
        self._start = time.monotonic()
        self._lines: TextIO | None = None
        self._events: Any = None
        if rank == 0:
            check_writable(workdir)
            for pattern in ("summary.json", "consensus.weights.h5", "events.out.tfevents.*"):
                for stale in self._workdir.glob(pattern):
                    stale.unlink()
            path = self._workdir / "metrics.jsonl"
            self._lines = open(path, "w", encoding="utf-8")  # noqa: SIM115 (until close)

    def config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json, from `swarm_tf.config.to_dict`."""
        if self._lines:
            _write_json(self._workdir / "config.json", config)

    def file(self, name: str, content: bytes) -> None:
        """Writes whatever else belongs to the run, whole or not at all."""
        if self._lines:
            _write(self._workdir / name, content)

    def log(self, step: int, **values: Any) -> None:
        """Appends {step, rank, time_seconds, **values} to metrics.jsonl, on disk at once.

        Numbers (Python, NumPy or TensorFlow scalars) become TensorBoard curves too.
        `time_seconds` counts from the creation of the writer.
        """
        if not self._lines:
            return
        elapsed = round(time.monotonic() - self._start, 6)
        line = {"step": step, "rank": self._rank, "time_seconds": elapsed, **values}
        self._lines.write(json.dumps(_plain(line), allow_nan=False) + "\n")
        self._lines.flush()
        self._log_events(step, values)

    def summary(self, summary: Summary) -> None:
        """Writes summary.json, whole or not at all."""
        if self._lines:
            _write_json(self._workdir / "summary.json", asdict(summary))

    def close(self) -> None:
        """Ends the files; a second call does nothing."""
        if self._lines:
            self._lines.close()
        if self._events:
            self._events.close()
        self._lines = self._events = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _log_events(self, step: int, values: Mapping[str, Any]) -> None:
        # TensorFlow fixes its thread counts when first used: not before the first line.
        import tensorflow as tf

        self._events = self._events or tf.summary.create_file_writer(str(self._workdir))
        with self._events.as_default():
            for name, value in values.items():
                number = _scalar(value)
                if isinstance(number, int | float):
                    tf.summary.scalar(name, number, step=step)


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
        """Terminal or not is the stream's word, or under a launcher SWARM_TF_LIVE's (0, 1)."""
        self._stream = stream or sys.stdout
        default = "1" if self._stream.isatty() and launcher.size() == 1 else "0"
        self._live = os.environ.get("SWARM_TF_LIVE", default) == "1"
        self._width = 0

    def update(self, status: Status) -> None:
        """Shows a moment inside an epoch; does nothing unless the line is live."""
        if self._live:
            self._rewrite(status, end="")

    def end_epoch(self, status: Status) -> None:
        """Leaves a line standing."""
        if self._live:
            self._rewrite(status, end="\n")
            self._width = 0
        else:
            self._stream.write(f"{status}\n")
            self._stream.flush()

    def _rewrite(self, status: Status, end: str) -> None:
        line = str(status)[: shutil.get_terminal_size().columns - 1]
        # Blanks wipe what a longer line before left behind.
        self._stream.write(f"\r{line:<{self._width}}{end}")
        self._stream.flush()
        self._width = len(line)


def _scalar(value: Any) -> Any:
    """A Python number of a NumPy or TensorFlow scalar; anything else as it is."""
    if hasattr(value, "numpy"):
        value = value.numpy()
    return value.item() if getattr(value, "shape", None) == () else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = _scalar(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(_plain(content), indent=2, allow_nan=False)
    _write(path, f"{text}\n".encode())


def _write(path: Path, content: bytes) -> None:
    """Through a temporary file and a rename: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
