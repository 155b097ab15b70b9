"""How a rank of a run is found and stopped."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest

from testbed.processes import NotStopped, last_step, process_of, stopped_once

# Logs a step every hundredth of a second, and when it was.
PROGRAM = """
import json, sys, time
workdir = sys.argv[1].removeprefix("--workdir=")
with open(workdir + "/metrics.jsonl", "w") as file:
    for step in range(1, int(sys.argv[2]) + 1):
        time.sleep(0.01)
        print(json.dumps({"step": step, "at": time.monotonic()}), file=file, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a run of two ranks; returns the process of rank 1."""
    running = []

    def start(steps):
        for rank in range(2):
            command = [sys.executable, "-c", PROGRAM, f"--workdir={tmp_path}", str(steps)]
            if rank == 0:
                command = [sys.executable, "-c", "input()", f"--workdir={tmp_path}"]
            environment = os.environ | {"OMPI_COMM_WORLD_RANK": str(rank)}
            running.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True)
            )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_rank_is_found_by_its_workdir(start, tmp_path):
    run = start(10_000)
    assert process_of(tmp_path, 1) == run.pid != process_of(tmp_path, 0)
    for workdir, rank in ((tmp_path, 2), (tmp_path / "other", 1)):
        with pytest.raises(ProcessLookupError, match=f"no process is rank {rank} of the run in"):
            process_of(workdir, rank)


def test_a_rank_is_stopped_once(start, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 10000}\n')  # of an earlier run
    with stopped_once(tmp_path, 1, seconds=1.0, after_step=20):
        metrics.rename(tmp_path / "earlier.jsonl")
        run = start(400)
        assert run.wait(60) == 0
    times = [json.loads(line)["at"] for line in metrics.read_text().splitlines()]
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert len(times) == last_step(tmp_path) == 400
    assert max(pauses[19:]) > 0.9


def test_a_run_that_is_over_too_soon_is_an_error(start, tmp_path):
    def run():
        with stopped_once(tmp_path, 1, seconds=60.0, after_step=20):
            start(10_000)
            deadline = time.monotonic() + 30
            while last_step(tmp_path) < 20 and time.monotonic() < deadline:
                time.sleep(0.01)

    with pytest.raises(NotStopped, match="was not stopped for 60 s: it was over before"):
        run()


def test_a_rank_that_is_not_there_is_an_error(tmp_path):
    def run():
        with stopped_once(tmp_path, 1, seconds=60.0, after_step=20):
            (tmp_path / "metrics.jsonl").write_text('{"step": 20}\n')
            time.sleep(1.0)

    with pytest.raises(NotStopped, match="no process is rank 1"):
        run()


def test_before_the_first_line_the_last_step_is_0(tmp_path):
    assert last_step(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text("")
    assert last_step(tmp_path) == 0
