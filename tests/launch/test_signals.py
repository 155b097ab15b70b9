"""A signal ends a run in good order: weights and summary are written, the exit code says why."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.processes import process_of

ROOT = Path(__file__).parents[2]
SWARMRUN = str(Path(sys.executable).parent / "swarmrun")


@pytest.fixture
def start(tmp_path):
    """Starts a long run and waits until it has taken `steps`."""
    started = []

    def start(ranks, algorithm, *flags, steps=20):
        launcher = [sys.executable] if ranks == 1 else [SWARMRUN, "-n", str(ranks)]
        common = ["--config=configs/digits_resnet.py", f"--workdir={tmp_path}"]
        common += [f"--config.algorithm={algorithm}", "--config.train.epochs=5000"]
        with open(tmp_path / "output", "w") as output:
            run = subprocess.Popen(
                [*launcher, "train.py", *common, *flags],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                preexec_fn=_accept_interrupts,
            )
        started.append(run)
        deadline = time.monotonic() + 300
        while _steps(tmp_path) <= steps:
            assert run.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.1)
        return run

    yield start
    for run in started:
        run.kill()
        run.wait()


def _accept_interrupts():
    """Makes SIGINT work again, which a shell ignores in background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _steps(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


@pytest.mark.parametrize(
    ("ranks", "algorithm", "number"),
    [
        pytest.param(1, "single", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(2, "swarm", signal.SIGTERM, marks=[pytest.mark.matrix, pytest.mark.slow]),
        pytest.param(2, "swarm", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(2, "allreduce", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(2, "diloco", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_in_good_order(start, tmp_path, ranks, algorithm, number):
    run = start(ranks, algorithm)
    run.send_signal(number)
    assert run.wait(60) == 128 + number
    output = (tmp_path / "output").read_text()
    assert "Traceback" not in output
    assert "ended the training after" in output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ended_by"] in (number.name, "SIGUSR1")
    assert 20 < summary["local_steps_total"] < 5000 * 1437 / 32
    assert summary["final"] == {}
    assert (tmp_path / "consensus.weights.h5").stat().st_size > 1000


@pytest.mark.parametrize("algorithm", [pytest.param("swarm", marks=pytest.mark.slow), "local_sgd"])
def test_a_signal_to_one_rank_ends_all_ranks(start, tmp_path, algorithm):
    run = start(2, algorithm)
    os.kill(process_of(tmp_path, rank=1), signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ended_by"] == "SIGTERM"
    assert summary["local_steps_total"] < 5000 * 1437 / 32
    assert (tmp_path / "consensus.weights.h5").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "algorithm"), [(1, "single"), (2, "swarm"), (2, "local_sgd")])
def test_a_second_signal_ends_a_run_at_once(start, tmp_path, ranks, algorithm):
    slow = ("--config.train.step_seconds=8", "--config.train.log_every=1")
    run = start(ranks, algorithm, *slow, steps=0)
    run.send_signal(signal.SIGINT)
    time.sleep(1)
    assert run.poll() is None  # the first signal waits for the end of the step
    run.send_signal(signal.SIGINT)
    assert run.wait(100) == 128 + signal.SIGINT
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "consensus.weights.h5").exists()


@pytest.mark.slow
def test_a_signal_before_training_ends_the_run_in_good_order(tmp_path):
    """The signal comes to one of two ranks that read the configuration; both end with files."""
    config = tmp_path / "early.py"
    config.write_text(
        "import os, signal, swarm_tf\n"
        "from configs import digits_resnet\n"
        "def get_config():\n"
        "    if swarm_tf.rank() == 1:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return digits_resnet.get_config()\n"
    )
    command = [SWARMRUN, "-n", "2", "train.py", f"--config={config}", f"--workdir={tmp_path}"]
    command += ["--config.algorithm=local_sgd"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["ended_by"] == "SIGTERM"
    assert summary["local_steps_total"] < 1000
    assert (tmp_path / "consensus.weights.h5").exists()
