"""A full disk: lines of metrics are left out, written files stay, a lost result is an error."""

import io
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import pytest
import test_metrics
import test_progress

from swarm_tf import files
from swarm_tf.errors import UsageError
from swarm_tf.runner import metrics
from swarm_tf.runner.progress import Progress
from testbed.small_disk import SmallDisk

ROOT = Path(__file__).parents[2]
SWARMRUN = str(Path(sys.executable).parent / "swarmrun")


@pytest.fixture
def disk(tmp_path):
    with SmallDisk(tmp_path / "disk") as disk:
        yield disk


def model() -> keras.Model:
    return keras.Sequential([keras.Input((30,)), keras.layers.Dense(300)])


def test_a_file_is_written_whole_or_stays_as_it_was(disk):
    path = disk.path / "file"
    files.write(path, b"old")
    disk.fill()
    with pytest.raises(OSError, match=r"No space left|File too large"):
        files.write(path, bytes(1 << 16))
    assert path.read_bytes() == b"old"
    assert disk.names() == {"file"}
    disk.free()
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_lines_and_events_are_left_out_with_one_warning_each(disk, caplog):
    with metrics.MetricsWriter(disk.path) as writer:
        writer.log(1, loss=1.0)
        disk.fill()
        for step in range(2, 2000):  # more than any buffer holds
            writer.log(step, loss=1.0, text="x" * 100)
        disk.free()
        writer.log(2000, loss=1.0)
    steps = [line["step"] for line in test_metrics.lines(disk.path)]  # each of them whole
    assert (steps[0], steps[-1]) == (1, 2000)
    assert len(steps) < 1000
    assert sum("lines of metrics.jsonl are left out" in text for text in caplog.messages) == 1
    assert sum("TensorBoard's events are left out" in text for text in caplog.messages) <= 1
    assert len(caplog.messages) <= 2


def test_a_result_that_cannot_be_written_is_an_error_at_the_end(disk):
    writer = metrics.MetricsWriter(disk.path)
    disk.fill()
    writer.weights(model())
    writer.summary(test_metrics.SUMMARY)
    with pytest.raises(UsageError, match=r"consensus\.weights\.h5 and summary\.json") as refusal:
        writer.close()
    assert "\n" not in str(refusal.value)
    assert str(disk.path) in str(refusal.value)
    assert disk.names() == {"metrics.jsonl"}


def test_a_result_that_could_not_be_written_is_retried_at_the_end(disk):
    trained = model()
    with metrics.MetricsWriter(disk.path) as writer:
        disk.fill()
        writer.weights(trained)
        disk.free()
    other = model()
    other.load_weights(disk.path / "consensus.weights.h5")
    assert (other.get_weights()[0] == trained.get_weights()[0]).all()


def test_an_error_of_the_training_is_not_hidden_by_a_full_disk(disk):
    def fails():
        with metrics.MetricsWriter(disk.path) as writer:
            disk.fill()
            writer.weights(model())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()


def test_a_full_disk_is_refused_before_the_run(disk):
    disk.fill()
    with pytest.raises(UsageError, match=f"--workdir={disk.path} cannot be written"):
        metrics.check_writable(disk.path)


def test_configuration_that_cannot_be_written_is_refused(disk):
    writer = metrics.MetricsWriter(disk.path)
    disk.fill()
    with pytest.raises(UsageError, match=r"config\.json cannot be written"):
        writer.config({"text": "x" * 10000})
    writer.close()


class Full(io.StringIO):
    """A stream to a full disk."""

    def flush(self):
        with open("/dev/full", "w") as full:
            full.write("x")


def test_progress_that_cannot_be_printed_does_not_end_the_run(caplog, monkeypatch):
    monkeypatch.delenv("SWARM_TF_LIVE", raising=False)
    progress = Progress(Full())
    for _ in range(3):
        progress.end_epoch(test_progress.STATUS)
    assert len(caplog.messages) == 1


@pytest.mark.slow
def test_two_ranks_train_to_the_end_on_a_disk_that_fills_up(disk):
    """The disk is full from the first line of metrics on; without a mount, for large files only."""

    def limit():
        if not disk.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))

    process = subprocess.Popen(
        [
            *(SWARMRUN, "-n", "2", "train.py", "--config=configs/digits_resnet.py"),
            *(f"--workdir={disk.path}", "--config.train.epochs=4", "--config.train.log_every=1"),
            "--config.algorithm=local_sgd",
        ],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": "/tmp"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )

    def fill_up():
        lines, deadline = disk.path / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < deadline and not (lines.exists() and lines.stat().st_size):
            time.sleep(0.05)
        disk.fill()

    if disk.mounted:
        filler = threading.Thread(target=fill_up)
        filler.start()
    try:
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    if disk.mounted:
        filler.join()
    assert process.returncode == 2, (output, errors)
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1
    assert "consensus.weights.h5" in lines[0]
    assert "epoch 4.0" in output  # training went on to the end
    assert not {"consensus.weights.h5", ".consensus.weights.h5.tmp"} & disk.names()
    for line in (disk.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
