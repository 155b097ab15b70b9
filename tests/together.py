"""Ranks that many tests share: one start runs all selected programs, one after another.

Each rank writes lines of JSON to REPORT/<rank>.jsonl: its `pid`, then for each name a line when it
`begins` and one when it is `over`, with the failure if there is one. If a rank fails in a program,
hangs in it or dies, the remaining programs run in a new start.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swarm_tf import UsageError
from swarm_tf.launch import swarmrun

ROOT = Path(__file__).parents[1]
SWARMRUN = Path(sys.executable).parent / "swarmrun"
STILL = 240.0  # seconds without progress; ranks that can do so end themselves earlier


def _no_mpi():
    try:
        swarmrun.find_mpirun(swarmrun.mpi_library())
    except UsageError as error:
        return str(error)
    return ""


REASON = _no_mpi()
needs_mpi = pytest.mark.skipif(bool(REASON), reason=REASON)


def environment():
    """What ranks need: the code of this checkout, and the conftest's settings of TensorFlow."""
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "tests")]
    path = os.pathsep.join(filter(None, paths))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class Report:
    """What the ranks have written so far."""

    def __init__(self, directory, ranks):
        self.directory, self.ranks = directory, range(ranks)
        self.lines = [[] for _ in self.ranks]

    def read(self):
        """Reads the files again; returns whether there are new lines."""
        before = [len(lines) for lines in self.lines]
        for rank in self.ranks:
            path = self.directory / f"{rank}.jsonl"
            text = path.read_text() if path.exists() else ""
            whole = text[: text.rfind("\n") + 1]  # a line may be half written
            self.lines[rank] = [json.loads(line) for line in whole.splitlines()]
        return before != [len(lines) for lines in self.lines]

    def of(self, name, key):
        """The line with this key that each rank has written for a name: {rank: line}."""
        return {
            rank: line for rank in self.ranks for line in self.lines[rank] if line.get(key) == name
        }

    def pids(self):
        return [line["pid"] for lines in self.lines for line in lines if "pid" in line]

    def failure(self, name, output):
        """Why the program `name` failed; empty if it passed."""
        begun, over = self.of(name, "begins"), self.of(name, "over")
        reasons = [f"rank {rank}: {one['failure']}" for rank, one in over.items() if one["failure"]]
        for rank in sorted(begun.keys() - over.keys()):
            stacks = self.directory / f"{rank}.stacks"
            seen = stacks.read_text().splitlines() if stacks.exists() else []
            how = "hung, and had to be ended" if seen else "died, or was ended by another rank"
            reasons.append("\n".join([f"rank {rank} {how}", *seen[:60]]))
        if reasons:
            reasons.append(f"the last output of the ranks:\n{output[-1500:]}")
        return "\n".join(reasons)


def run(ranks, program, names, directory):
    """{name: (failure, seconds)} of all names; `program` are the words that start it."""
    found, starts = {}, 0
    while left := [name for name in names if name not in found]:
        found |= _start(ranks, program, left, directory / str(starts))
        starts += 1
    slowest = sorted(found, key=lambda name: -found[name][1])[:5]
    print(f"{len(found)} on {ranks} ranks in {starts} starts; the slowest:", *slowest)
    return found


def _start(ranks, program, names, directory):
    """The same for those names that began in one start."""
    directory.mkdir(parents=True)
    report = Report(directory, ranks)
    command = [str(SWARMRUN), "-n", str(ranks), *program, str(directory), *names]
    with open(directory / "output", "w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=ROOT / "tests",
            start_new_session=True,
        )
        last_progress = time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            if report.read():
                last_progress = time.monotonic()
            if time.monotonic() - last_progress > STILL:
                _kill(process, report, directory)
    report.read()
    printed = (directory / "output").read_text()
    results = {}
    for name in names:
        if not report.of(name, "begins"):
            break
        seconds = [line["seconds"] for line in report.of(name, "over").values()]
        results[name] = report.failure(name, printed), max(seconds, default=float("nan"))
    assert results, f"the ranks have not begun:\n{printed[-3000:]}"
    if process.returncode and not any(failure for failure, _ in results.values()):
        last = list(results)[-1]
        results[last] = (
            f"exit code {process.returncode} after it:\n{printed[-1500:]}",
            results[last][1],
        )
    return results


def _kill(process, report, directory):
    os.killpg(process.pid, signal.SIGKILL)
    for pid in report.pids():
        if str(directory).encode() in _command_line(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)


def _command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def selected_names(request, test):
    """The values of `name` for which `test` will be run in this session."""
    return [item.callspec.params["name"] for item in request.session.items if item.function is test]
