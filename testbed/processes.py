"""Finds the processes of a run, and stops one of its ranks for a while."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")


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


def _file_number(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_ino
    return None


@contextlib.contextmanager
def stopped_once(workdir: Path, rank: int, seconds: float, after_step: int) -> Iterator[None]:
    """Within the block, stops a rank (SIGSTOP) for `seconds`, once `after_step` has been logged.

    Raises:
      RuntimeError: the block has ended, and the rank had not been stopped for that long.
    """
    over, stopped = threading.Event(), threading.Event()
    earlier_run = _file_number(workdir / "metrics.jsonl")

    def stop() -> None:
        while (
            _file_number(workdir / "metrics.jsonl") == earlier_run
            or last_step(workdir) < after_step
        ):
            if over.wait(0.2):
                return
        process = process_of(workdir, rank)
        os.kill(process, signal.SIGSTOP)
        try:
            if not over.wait(seconds):
                stopped.set()
        finally:
            os.kill(process, signal.SIGCONT)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if not stopped.is_set():
        raise RuntimeError(
            f"the run was over before rank {rank} had been stopped for {seconds:g} s"
        )
