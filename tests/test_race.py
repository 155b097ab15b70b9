"""The race's reading of its arguments and of runs."""

import json
import math

import pytest
from rich import box

from benchmarks import race, runs


def write(workdir, algorithm="swarm", losses=(4.0, 2.0, 1.0), seconds=10.0, exposed=0.0):
    """A workdir of a run of three passes that took so many seconds each."""
    workdir.mkdir()
    lines = [
        {"step": 10 * k, "epoch": k, "train_seconds": seconds * k, "bytes_sent": 1e6 * k,
         "pass_loss": loss, "test_accuracy": 1 - loss / 10}
        for k, loss in enumerate(losses, start=1)
    ]  # fmt: skip
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    total = seconds * len(losses)
    summary = {
        "algorithm": algorithm, "ranks": 4, "parameters": 100, "epochs": 3, "bytes_sent": 4e6,
        "train_seconds": total, "exposed_seconds": exposed * total, "exposed_fraction": exposed,
        "steps_per_second": {"min": 20 / total, "mean": 30 / total, "max": 40 / total},
        "final": {"accuracy": 0.9, "loss": 1.0},
    }  # fmt: skip
    (workdir / "summary.json").write_text(json.dumps(summary))
    (workdir / "config.json").write_text("{}")
    return race.Result(workdir.name, runs.read(workdir))


def test_entrants_have_settings_of_their_own():
    swarm, four, two = race.entrants("swarm,swarm[swarm.bits=4],allreduce[a.b=c,d.e=(1, 2)]")
    assert swarm.flags == ["--config.algorithm=swarm"]
    assert four.flags == ["--config.algorithm=swarm", "--config.swarm.bits=4"]
    assert two.flags == ["--config.algorithm=allreduce", "--config.a.b=c", "--config.d.e=(1, 2)"]
    assert two.algorithm == "allreduce"
    assert len({e.directory for e in (swarm, four, two)}) == 3
    assert four.directory == "swarm-swarm.bits=4"


def test_time_to_a_loss_is_between_passes(tmp_path):
    one = write(tmp_path / "one")
    assert one.seconds_to(4.0) == 10
    assert one.seconds_to(3.0) == 15
    assert one.seconds_to(1.0) == 30
    assert math.isnan(one.seconds_to(0.5))
    wobbling = write(tmp_path / "wobbling", losses=(4.0, 2.0, 3.0, 1.0, 1.2))
    assert [wobbling.seconds_to(loss) for loss in (2.0, 1.5, 1.0)] == [20, 35, 40]
    other = write(tmp_path / "other", losses=(3.0, 1.5, 1.2))
    assert race.target([one, other]) == 1.2


def test_rivals_are_measured_by_the_faster_allreduce(tmp_path):
    results = [
        write(tmp_path / "swarm", seconds=5),
        write(tmp_path / "mpi", "allreduce", seconds=10, exposed=0.6),
        write(tmp_path / "hvd", "allreduce", seconds=20),
    ]
    table = race.table(results, 4.0, box.SIMPLE_HEAD)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["times all-reduce"] == ["2.00", "1.00", "0.50", "4.00"]
    assert columns["s to loss 1 (rank 0)"] == ["15", "30", "60", ""]


def test_the_ideal_hides_one_behind_the_other(tmp_path):
    """30 s, 30 steps, 60 % exposed: 0.4 s of computing a step."""
    results = [write(tmp_path / "mpi", "allreduce", seconds=10, exposed=0.6)]
    assert race._ideal(results, 0.1) == pytest.approx(1 / 0.4)
    assert race._ideal(results, 0.8) == pytest.approx(1 / 0.8)
    assert race._ideal(results, None) is None
    assert race._ideal([write(tmp_path / "swarm")], 0.8) is None


def test_report_of_finished_runs(tmp_path, capsys):
    write(tmp_path / "swarm")
    write(tmp_path / "allreduce", "allreduce")
    paths = [str(tmp_path / name) for name in ("swarm", "allreduce")]
    assert race.main(["--workdirs", *paths, f"--out={tmp_path / 'out'}"]) == 0
    assert "| allreduce" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "race.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("argument", ["--bandwidth=100", "--slow-rank=0.5x", "--rank=3"])
def test_bad_arguments_are_refused(argument, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        race.main(["--config=c.py", f"--out={tmp_path}", argument])
    assert refused.value.code == 2
    assert argument.split("=")[-1] in capsys.readouterr().err
