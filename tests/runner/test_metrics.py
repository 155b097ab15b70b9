"""The files of a run: complete, strict JSON, on disk line by line, and never stale."""

import dataclasses
import json
import math

import numpy as np
import pytest

from swarm_tf.errors import UsageError
from swarm_tf.runner import metrics
from swarm_tf.runner.summary import Summary

SUMMARY = Summary(
    algorithm="swarm",
    ranks=4,
    survivors=4,
    parameters=1000,
    local_steps_total=400,
    epochs=2.0,
    ended_by=None,
    wall_seconds=10.0,
    train_seconds=8.0,
    examples_per_second=1600.0,
    final={"loss": np.float32(0.5), "accuracy": math.nan},
    per_rank_accuracy={"min": 0.8, "max": 0.9},
    exchanges=100,
    exchanges_failed=1,
    steps_per_exchange=4.0,
    bytes_sent=10**6,
    payload_bytes_per_exchange=1000.0,
    blocks_skipped=0,
    exposed_seconds=0.1,
    exposed_fraction=0.0125,
    data_wait_fraction=0.004,
    step_seconds_median=0.02,
    steps_per_second={"min": 1.0, "mean": 1.5, "max": 2.0},
    staleness_mean=4.0,
    consensus_distance=0.01,
)


def strict(text):
    """JSON as the standard has it, without Python's NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def lines(workdir):
    return [strict(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_on_disk_before_the_writer_closes(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.log(10, loss=np.float32(0.5), epoch=1, note="warm")
    (line,) = lines(tmp_path)
    elapsed = line.pop("time_seconds")
    assert line == {"step": 10, "rank": 0, "loss": 0.5, "epoch": 1, "note": "warm"}
    assert 0 <= elapsed < 60
    writer.close()
    writer.close()


def test_nan_and_inf_become_null(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.log(1, loss=math.nan, other=np.float32(np.inf), many=[np.int64(1), -math.inf])
    (line,) = lines(tmp_path)
    assert line["loss"] is None
    assert line["other"] is None
    assert line["many"] == [1, None]


def test_tensorboard_has_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    with metrics.MetricsWriter(tmp_path) as writer:
        writer.log(10, loss=0.5, note="text")
        writer.log(20, loss=np.float32(0.25))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["tensors"] == ["loss"]
    values = [make_ndarray(event.tensor_proto) for event in events.Tensors("loss")]
    assert values == [0.5, 0.25]
    assert [e.step for e in events.Tensors("loss")] == [10, 20]


def test_summary_has_every_field_and_leaves_no_temporary_file(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.summary(SUMMARY)
    written = strict((tmp_path / "summary.json").read_text())
    assert list(written) == [field.name for field in dataclasses.fields(Summary)]
    assert written["final"] == {"loss": 0.5, "accuracy": None}
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "summary.json"}


def test_the_configuration_is_written_as_json(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.config({"swarm": {"bits": 8}})
    assert strict((tmp_path / "config.json").read_text()) == {"swarm": {"bits": 8}}


def test_an_earlier_run_moves_aside_with_all_its_files(tmp_path, caplog):
    (tmp_path / "notes.txt").write_text("not of a run")
    for number in range(3):
        with metrics.MetricsWriter(tmp_path) as writer:
            writer.config({"number": number})
            writer.file("vocabulary", str(number).encode())
            writer.log(1, loss=1.0)
            if number:  # the first run was interrupted
                writer.summary(SUMMARY)
    assert "previous-1" in caplog.text
    assert "previous-2" in caplog.text
    here = {"notes.txt", "previous-1", "previous-2"}
    for number, place in enumerate((tmp_path / "previous-1", tmp_path / "previous-2", tmp_path)):
        names = {file.name for file in place.iterdir() if not file.name.startswith("events.")}
        whole = {"config.json", "vocabulary", "metrics.jsonl"} | (
            {"summary.json"} if number else set()
        )
        assert names - here == whole
        assert strict((place / "config.json").read_text()) == {"number": number}
        assert (place / "vocabulary").read_text() == str(number)
        assert len(lines(place)) == 1
        assert len(list(place.glob("events.*"))) == 1


def test_a_run_that_never_began_is_replaced(tmp_path):
    for _ in range(2):
        with metrics.MetricsWriter(tmp_path) as writer:
            writer.config({})
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "metrics.jsonl"}


def test_other_ranks_write_nothing(tmp_path):
    with metrics.MetricsWriter(tmp_path / "w", rank=1) as writer:
        writer.config({})
        writer.log(1, loss=1.0)
        writer.summary(SUMMARY)
    assert not (tmp_path / "w").exists()


def test_workdir_is_created(tmp_path):
    metrics.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("below", ["", "/sub"])
def test_a_workdir_that_is_a_file_is_refused(tmp_path, below):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match=f"--workdir={file}{below} cannot be written"):
        metrics.check_writable(f"{file}{below}")


def test_a_workdir_that_cannot_be_created_is_refused():
    with pytest.raises(UsageError, match="--workdir=/proc/x cannot be written"):
        metrics.MetricsWriter("/proc/x")
