"""Starts two ranks for all specimens that are asked for, and makes a test of each.

The ranks go through the specimens one after another. If they fail in one, hang in it or die, the
others run in a new start.
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
from zoo import specimens

ROOT = Path(__file__).parents[2]
SWARMRUN = Path(sys.executable).parent / "swarmrun"
STILL = 240.0  # seconds without any progress; ranks end themselves before, if they can


def _no_mpi():
    try:
        swarmrun.find_mpirun(swarmrun.mpi_library())
    except UsageError as error:
        return str(error)
    return ""


REASON = _no_mpi()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


class Report:
    """What the ranks have written so far."""

    def __init__(self, directory):
        self.directory = directory
        self.lines = [[], []]

    def read(self):
        """Whether there is something new."""
        before = [len(lines) for lines in self.lines]
        for rank in range(2):
            path = self.directory / f"{rank}.jsonl"
            text = path.read_text() if path.exists() else ""
            self.lines[rank] = [json.loads(line) for line in text.splitlines(keepends=False)]
        return before != [len(lines) for lines in self.lines]

    def of(self, name, key):
        """What each rank has written of a specimen: {rank: line}."""
        return {
            rank: line for rank in range(2) for line in self.lines[rank] if line.get(key) == name
        }

    def pids(self):
        return [line["pid"] for lines in self.lines for line in lines if "pid" in line]

    def failure(self, name, output):
        """What is wrong with a specimen that a start has ended with; empty if nothing is."""
        begun, over = self.of(name, "begins"), self.of(name, "over")
        told = [f"rank {rank}: {one['failure']}" for rank, one in over.items() if one["failure"]]
        for rank in sorted(begun.keys() - over.keys()):
            stacks = self.directory / f"{rank}.stacks"
            seen = stacks.read_text().splitlines() if stacks.exists() else []
            how = "hung, and had to be ended" if seen else "died, or was ended by the other one"
            told.append("\n".join([f"rank {rank} {how}", *seen[:60]]))
        if told:
            told.append(f"the last that the ranks said:\n{output[-1500:]}")
        return "\n".join(told)


def start(names, directory):
    """{name: (failure, seconds)} of those specimens that one start has got through."""
    directory.mkdir()
    report = Report(directory)
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "tests")]
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
        KERAS_BACKEND="tensorflow",
        TF_CPP_MIN_LOG_LEVEL="3",
        TF_NUM_INTRAOP_THREADS="1",
        TF_NUM_INTEROP_THREADS="1",
        OMP_NUM_THREADS="1",
        PYTHONUNBUFFERED="1",
    )
    command = [str(SWARMRUN), "-n", "2", "-m", "zoo", str(directory), *names]
    with open(directory / "output", "w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT / "tests",
            start_new_session=True,
        )
        moved = time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            if report.read():
                moved = time.monotonic()
            if time.monotonic() - moved > STILL:
                _kill(process, report)
    report.read()
    said = (directory / "output").read_text()
    results = {}
    for name in names:
        if not report.of(name, "begins"):
            break
        seconds = [line["seconds"] for line in report.of(name, "over").values()]
        results[name] = report.failure(name, said), max(seconds, default=float("nan"))
    assert results, f"the ranks have not begun:\n{said[-3000:]}"
    return results


def _kill(process, report):
    os.killpg(process.pid, signal.SIGKILL)
    for pid in report.pids():
        if b"zoo" in _command_line(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)


def _command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """{name: (failure, seconds)} of all specimens that are asked for."""
    items = [item for item in request.session.items if item.function is test_specimen]
    names = [item.callspec.params["name"] for item in items]
    directory = tmp_path_factory.mktemp("zoo")
    found, starts = {}, 0
    while left := [name for name in names if name not in found]:
        found |= start(left, directory / str(starts))
        starts += 1
    slowest = sorted(found, key=lambda name: -found[name][1])[:5]
    print(f"{len(found)} specimens in {starts} starts; the slowest:", *slowest)
    return found


def _parameters():
    names = specimens.collect()
    slow = {name: [pytest.mark.slow] for name in specimens.SLOW}
    return [pytest.param(name, marks=slow.get(name, []), id=name) for name in names]


@pytest.mark.parametrize("name", _parameters())
def test_specimen(name, results):
    failure, _ = results[name]
    assert not failure, f"{name}: {specimens.SPECIMENS[name].__doc__}\n{failure}"
