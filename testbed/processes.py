"""Finds the processes of a run, and stops one of its ranks for a while."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")


class NotStopped(RuntimeError):
    """A rank could not be stopped, or not for long enough."""


def process_of(workdir: Path, rank: int) -> int:
    """The id of the process that is this rank of the run of train.py with this workdir.

    Raises:
      ProcessLookupError: there is none.
    """
    ours = {f"{name}={rank}".encode() for name in _RANK_VARIABLES}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # the process has ended
            continue
        if f"--workdir={workdir}".encode() in words and ours.intersection(environment):
            return int(process.name)
    raise ProcessLookupError(f"no process is rank {rank} of the run in {workdir}")


def last_step(workdir: Path) -> int:
    """The last step in metrics.jsonl; 0 before the first."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


@contextlib.contextmanager
def stopped_once(workdir: Path, rank: int, seconds: float, after_step: int) -> Iterator[None]:
    """Within the block, stops a rank (SIGSTOP) for `seconds`, once `after_step` has been logged.

    Raises:
      NotStopped: the block has ended, and the rank had not been stopped for that long.
    """
    over = threading.Event()
    at_entry = _progress(workdir)

    def stop() -> None:
        while (now := _progress(workdir)) == at_entry or now[1] < after_step:
            if over.wait(0.2):
                raise RuntimeError("it was over before")
        process = process_of(workdir, rank)
        os.kill(process, signal.SIGSTOP)
        try:
            if over.wait(seconds):
                raise RuntimeError("it was over before that time")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    with ThreadPoolExecutor(1) as thread:
        stopping = thread.submit(stop)
        try:
            yield
        finally:
            over.set()
    if error := stopping.exception():
        raise NotStopped(
            f"rank {rank} of the run in {workdir} was not stopped for {seconds:g} s: {error}"
        ) from error


def _progress(workdir: Path) -> tuple[int | None, int]:
    """The number of the file metrics.jsonl, and its last step: they differ from run to run."""
    with contextlib.suppress(OSError):
        return (workdir / "metrics.jsonl").stat().st_ino, last_step(workdir)
    return None, 0
