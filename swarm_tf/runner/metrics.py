"""The files that a run writes: metrics.jsonl, TensorBoard events, the weights, summary.json.

NaN and infinities are written as null: JSON cannot represent them, and pandas reads null as NaN.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from swarm_tf import files
from swarm_tf.errors import UsageError
from swarm_tf.runner.summary import Summary

_log = logging.getLogger("swarm_tf")

CHECKPOINTS = "checkpoints"
"""The directory of the checkpoints, in the workdir."""

_MIN_FREE_BYTES = 1 << 16
"""A run does not start if fewer bytes than these can be written."""


def check_writable(workdir: str | os.PathLike[str]) -> None:
    """Creates `workdir` and writes a temporary file, so that a run does not fail at its end.

    Raises:
      UsageError: if the directory cannot be created or written.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        # os.access is not enough: for root it reports read-only file systems as writable.
        with tempfile.TemporaryFile(dir=workdir, buffering=0) as file:
            file.write(bytes(_MIN_FREE_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be written ({files.reason(error)}); "
            "name a directory that can be created or written"
        ) from error


class MetricsWriter:
    """Writes the files of a run into its workdir, on rank 0; on other ranks it does nothing.

    The files of an earlier run that has at least written a line of metrics are moved to
    `previous-1` (or the next free number) in the workdir. So an old summary.json or old weights
    cannot be mistaken for the result of a new run that failed, and starting again loses no result.
    But a run that goes on from a checkpoint continues the files.

    On a full disk, lines of metrics and TensorBoard events are left out, with one warning for each
    of the two. The weights and the summary are the result of the run: if they cannot be written,
    `close` tries again and raises an error if that fails too.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        rank: int = 0,
        continues: Mapping[str, Any] | None = None,
    ) -> None:
        """Creates `workdir`; raises UsageError if rank 0 cannot write to it.

        Args:
          continues: what `state` returned at the checkpoint that the run goes on from.
        """
        self._workdir = Path(workdir)
        self._rank = rank
        self._start = time.monotonic()
        self._lines: FileIO | None = None
        self._events: Any = None
        self._earlier: Path | None = None
        self._left_out: set[str] = set()
        self._unwritten: dict[str, Callable[[], bytes | memoryview]] = {}
        if rank == 0:
            check_writable(workdir)
            path = self._workdir / "metrics.jsonl"
            if continues is None:
                self._earlier = _move_earlier_run(self._workdir)
                path.write_bytes(b"")
            self._lines = open(path, "ab", buffering=0)  # noqa: SIM115 (until close)
        if continues is not None:
            self._start -= continues["seconds"]
            if self._lines:  # lines after the checkpoint are written again
                self._lines.truncate(min(continues["bytes"], self._lines.seek(0, os.SEEK_END)))
                self._lines.seek(0, os.SEEK_END)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: seconds since the start, and bytes of metrics.jsonl (0 if not here)."""
        end = self._lines.tell() if self._lines else 0
        return {"seconds": time.monotonic() - self._start, "bytes": end}

    def config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json, the result of `swarm_tf.config.to_dict`; raises as `file` does."""
        self.file("config.json", _json(config))

    def file(self, name: str, content: bytes) -> None:
        """Writes another file of the run before training, atomically.

        Raises:
          UsageError: if the file cannot be written.
        """
        if not self._lines:
            return
        path = self._workdir / name
        try:
            if self._earlier and path.exists():
                path.rename(self._earlier / name)
            files.write(path, content)
        except OSError as error:
            raise UsageError(
                f"--workdir={self._workdir}: {name} cannot be written ({files.reason(error)}); "
                "make room or name another directory"
            ) from error

    def log(self, step: int, **values: Any) -> None:
        """Appends the line {step, rank, time_seconds, **values} to metrics.jsonl, unbuffered.

        Numbers (Python, NumPy or TensorFlow scalars) are also written as TensorBoard scalars.
        `time_seconds` is the time since the writer was created.
        """
        if not self._lines:
            return
        elapsed = round(time.monotonic() - self._start, 6)
        line = {"step": step, "rank": self._rank, "time_seconds": elapsed, **values}
        try:
            _append(self._lines, f"{json.dumps(_plain(line), allow_nan=False)}\n".encode())
        except OSError as error:
            self._leave_out("lines of metrics.jsonl", files.reason(error))
        self._log_events(step, values)

    def weights(self, model: Any) -> None:
        """Writes consensus.weights.h5 atomically; needs memory for a second copy of the weights.

        Args:
          model: a built Keras model.
        """
        self._result("consensus.weights.h5", lambda: files.weights_of(model))

    def summary(self, summary: Summary) -> None:
        """Writes summary.json atomically."""
        self._result("summary.json", lambda: _json(asdict(summary)))

    def close(self) -> None:
        """Closes the files; a second call does nothing.

        Raises:
          UsageError: if the weights or the summary could not be written at the second attempt.
        """
        failed = {}
        for name, content in self._unwritten.items():
            if why := self._try(name, content):
                failed[name] = why
        self._unwritten = {}
        if self._lines:
            self._lines.close()
        if self._events:
            with contextlib.suppress(Exception):  # the disk is full, and a warning was logged
                self._events.close()
        self._lines = self._events = None
        if failed:
            names, why = " and ".join(failed), next(iter(failed.values()))
            raise UsageError(
                f"--workdir={self._workdir}: {names} could not be written ({why}); make room or "
                "name another directory, and train again"
            )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except UsageError:
            if kind is None:  # otherwise this error would replace the first one
                raise

    def _result(self, name: str, content: Callable[[], bytes | memoryview]) -> None:
        if not self._lines:
            return
        self._unwritten.pop(name, None)
        if why := self._try(name, content):
            self._unwritten[name] = content
            _log.warning("--workdir=%s: %s cannot be written (%s)", self._workdir, name, why)

    def _try(self, name: str, content: Callable[[], bytes | memoryview]) -> str | None:
        """Writes a file; returns the reason of a failure, or None."""
        try:
            files.write(self._workdir / name, content())
        except OSError as error:
            return files.reason(error)
        return None

    def _leave_out(self, what: str, why: str) -> None:
        if what not in self._left_out:
            self._left_out.add(what)
            _log.warning("--workdir=%s: %s are left out (%s)", self._workdir, what, why)

    def _log_events(self, step: int, values: Mapping[str, Any]) -> None:
        # The first use of TensorFlow fixes its thread counts, so import it only at the first line.
        import tensorflow as tf

        what = "TensorBoard's events"
        if what in self._left_out:
            return
        try:
            self._events = self._events or tf.summary.create_file_writer(str(self._workdir))
            with self._events.as_default():
                for name, value in values.items():
                    number = _scalar(value)
                    if isinstance(number, int | float):
                        tf.summary.scalar(name, number, step=step)
        except tf.errors.OpError as error:
            self._leave_out(what, error.message.splitlines()[0])


def _scalar(value: Any) -> Any:
    """Converts a NumPy or TensorFlow scalar to a Python number; returns other values unchanged."""
    if hasattr(value, "numpy"):
        value = value.numpy()
    return value.item() if getattr(value, "shape", None) == () else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = _scalar(value)
    if hasattr(value, "tolist"):  # an array
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(content: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(_plain(content), indent=2, allow_nan=False)}\n".encode()


def _append(file: FileIO, line: bytes) -> None:
    """Append the whole line; after an error, no part of it."""
    start, rest = file.tell(), memoryview(line)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(start)
        file.seek(start)
        raise


def _move_earlier_run(workdir: Path) -> Path | None:
    """Moves the files of an earlier run to a new subdirectory `previous-N`.

    A used workdir is allowed because `make demo` and benchmarks reuse theirs.

    Returns:
      The subdirectory; None if there was no earlier result.
    """
    lines = workdir / "metrics.jsonl"
    results = [workdir / "summary.json", workdir / "consensus.weights.h5"]
    whole = [*results, workdir / CHECKPOINTS]
    if not any(path.exists() for path in whole) and not (lines.exists() and lines.stat().st_size):
        return None
    events = workdir.glob("events.out.tfevents.*")
    for number in itertools.count(1):
        aside = workdir / f"previous-{number}"
        if not aside.exists():
            break
    try:
        aside.mkdir()
        for path in (lines, *whole, workdir / "config.json", *events):
            if path.exists():
                path.rename(aside / path.name)
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} has an earlier run that cannot be moved to {aside.name} "
            f"({files.reason(error)}); name another directory"
        ) from error
    _log.warning("--workdir=%s: the files of an earlier run were moved to %s", workdir, aside.name)
    return aside
