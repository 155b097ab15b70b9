"""A run of train.py that was killed goes on from its checkpoints."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed import tfds_standin

ROOT = Path(__file__).parents[2]
SWARMRUN = str(Path(sys.executable).parent / "swarmrun")
SHORT = [
    "train.py",
    "--config=configs/digits_resnet.py",
    "--config.train.max_steps=60",
    "--config.train.checkpoint_steps=10",
    "--config.train.log_every=1",
    # So that a run can be killed in its middle. It is the same in all runs that are compared, since
    # it changes TensorFlow's graph, and so how numbers are rounded.
    "--config.train.step_seconds=0.05",
]


def command(ranks, workdir, *flags):
    launcher = [sys.executable] if ranks == 1 else [SWARMRUN, "-n", str(ranks)]
    return [*launcher, *SHORT, f"--workdir={workdir}", *flags]


def train(ranks, workdir, *flags):
    return subprocess.run(
        command(ranks, workdir, *flags), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def kill_after(step, ranks, workdir, *flags):
    """Start a run, and kill it without a warning after it has logged `step`."""
    with open(workdir.parent / "output", "w") as output:
        run = subprocess.Popen(
            command(ranks, workdir, *flags), cwd=ROOT, stdout=output, stderr=output
        )
    deadline = time.monotonic() + 200
    while max((line["step"] for line in metrics(workdir)), default=0) < step:
        assert run.poll() is None, (workdir.parent / "output").read_text()
        assert time.monotonic() < deadline, (workdir.parent / "output").read_text()
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)  # mpirun ends with swarmrun, and ranks with mpirun
    run.wait()
    while running(workdir):
        assert time.monotonic() < deadline, "ranks are left"
        time.sleep(0.05)


def running(workdir):
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return f"--workdir={workdir}" in listed


def metrics(workdir):
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if "\n" in line]


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def exact(line):
    """What is the same in both runs: no times; and joining the ranks again sends some bytes."""
    return {k: v for k, v in line.items() if "seconds" not in k and k != "bytes_sent"}


def files(workdir, rank, stage=1):
    """Checkpoints of a rank, the oldest first."""
    return sorted(workdir.glob(f"checkpoints/stage-{stage:03d}-*/rank-{rank:05d}/*.npz"))


@pytest.mark.parametrize(
    ("ranks", "algorithm"),
    [pytest.param(1, "single", marks=pytest.mark.slow), (2, "local_sgd")],
)
def test_a_killed_run_ends_like_one_that_was_not(tmp_path, ranks, algorithm):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = [f"--config.algorithm={algorithm}", "--config.train.evaluate_every=0.5"]
    assert train(ranks, whole, *flags).returncode == 0
    kill_after(25, ranks, broken, *flags)
    assert not (broken / "summary.json").exists()
    done = train(ranks, broken, *flags, "--resume=must")
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    weights = [path / "consensus.weights.h5" for path in (whole, broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert list(map(exact, metrics(broken))) == list(map(exact, metrics(whole)))
    times = [line["time_seconds"] for line in metrics(broken)]
    assert times == sorted(times)
    for name in ("local_steps_total", "epochs", "exchanges", "final"):
        assert summary(broken)[name] == summary(whole)[name]
    assert summary(broken)["bytes_sent"] == pytest.approx(summary(whole)["bytes_sent"], rel=1e-4)


def test_damaged_and_lost_files_and_other_numbers_of_ranks(tmp_path):
    run = tmp_path / "run"
    assert train(2, run, "--config.algorithm=local_sgd").returncode == 0
    assert [path.name[:14] for path in files(run, 1)] == ["step-000000050", "step-000000060"]
    data = bytearray(files(run, 1)[-1].read_bytes())
    data[1000] ^= 1
    files(run, 1)[-1].write_bytes(data)
    done = train(2, run, "--config.algorithm=local_sgd")
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr
    assert "step 50" in done.stderr  # of both ranks, though only one file is damaged
    assert summary(run)["local_steps_total"] == 120

    for path in files(run, 1):
        path.unlink()
    done = train(2, run, "--config.algorithm=local_sgd", "--config.train.max_steps=70")
    assert done.returncode == 0, done.stderr
    assert "rank 1: no checkpoint that can be read" in done.stderr
    assert summary(run)["local_steps_total"] == 140
    assert len(files(run, 1)) == 1

    # 70 steps of two ranks are as many passes as 140 of one.
    flags = ["--config.algorithm=local_sgd", "--config.train.max_steps=150"]
    done = train(1, run, *flags)
    assert done.returncode == 0, done.stderr
    assert "step 140" in done.stderr
    assert next(line["step"] for line in metrics(run) if line["step"] > 70) == 141
    assert not files(run, 0)
    assert files(run, 0, stage=2)
    accuracy = summary(run)["final"]["accuracy"]
    done = train(2, run, *flags, "--resume=never", "--config.train.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert summary(run / "previous-1")["final"]["accuracy"] == accuracy
    assert (run / "previous-1" / "checkpoints").exists()
    assert summary(run)["local_steps_total"] == 2


def test_to_go_on_from_nothing_is_refused(tmp_path):
    done = train(1, tmp_path / "run", "--config.algorithm=single", "--resume=must")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("train.py")]
    assert len(lines) == 1
    assert "has no checkpoints" in lines[0]


def imagenet(where):
    make = tfds_standin.coloured((48, 56), file_name="x")
    tfds_standin.write("imagenet2012", where, make, {"train": 64, "validation": 8})
    size = ["--config.data.image_size=32", "--config.model.name=resnet18"]
    return ["imagenet_resnet18", f"--config.data.data_dir={where}", *size]


def wmt17(where):
    pairs = {"train": 300, "test": 4}
    tfds_standin.write("wmt17_translate/de-en", where, tfds_standin.sentences, pairs)
    size = ["--config.data.vocabulary_size=400", "--config.data.max_length=64"]
    size += ["--config.model.name=transformer_tiny", "--config.train.batch_size=256"]
    return ["wmt17_transformer_base", f"--config.data.data_dir={where}", *size]


PIPELINES = {
    "in memory": lambda where: ["digits_resnet"],
    "streamed": imagenet,
    "buckets": wmt17,
    # The memory of a Transformer-XL is state too: the run stops within documents.
    "documents": lambda where: [
        "number_words_transformer_xl",
        "--config.data.train_examples=400",
        "--config.train.batch_size=200",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_pipeline_goes_on_exactly(tmp_path, pipeline):
    config, *flags = PIPELINES[pipeline](str(tmp_path / "tfds"))
    words = [sys.executable, "train.py", f"--config=configs/{config}.py", *flags]
    words += ["--config.algorithm=single", "--config.train.max_steps=12"]
    words += ["--config.train.checkpoint_steps=5", "--config.train.checkpoint_keep=9"]
    words += ["--config.train.batch_size=8"] if pipeline == "streamed" else []
    words += ["--config.train.log_every=1", f"--workdir={tmp_path / 'run'}"]
    weights = tmp_path / "run" / "consensus.weights.h5"
    written = []
    for _ in range(2):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        written.append((weights.read_bytes(), list(map(exact, metrics(tmp_path / "run")))))
        for path in files(tmp_path / "run", 0):
            if not path.name.startswith("step-000000005"):
                path.unlink()
    assert "step 5" in done.stderr
    assert written[0] == written[1]
