"""How the race reads its arguments and the files of runs."""

import json
import math

import pytest
from rich import box

from benchmarks import race, runs


def write(
    workdir, algorithm="swarm", losses=(4.0, 2.0, 1.0), seconds=10.0, exposed=0.0, **settings
):
    """Writes the workdir of a run: one pass for each loss, `seconds` each."""
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
    config = {"algorithm": algorithm, "swarm": {"bits": 8, "local_steps": 4} | settings}
    (workdir / "config.json").write_text(json.dumps(config))
    return race.Result(workdir.name, runs.read(workdir))


def test_time_to_a_loss_is_interpolated_between_passes(tmp_path):
    one = write(tmp_path / "one")
    assert one.seconds_to_loss(4.0) == 10
    assert one.seconds_to_loss(3.0) == 15
    assert one.seconds_to_loss(1.0) == 30
    assert math.isnan(one.seconds_to_loss(0.5))
    wobbling = write(tmp_path / "wobbling", losses=(4.0, 2.0, 3.0, 1.0, 1.2))
    assert [wobbling.seconds_to_loss(loss) for loss in (2.0, 1.5, 1.0)] == [20, 35, 40]


def test_time_to_an_accuracy_is_interpolated_between_tests(tmp_path):
    one = write(tmp_path / "one")  # 60 %, 80 %, 90 %
    assert [one.seconds_to_accuracy(share) for share in (0.5, 0.6)] == [10, 10]
    assert one.seconds_to_accuracy(0.85) == pytest.approx(25)
    assert math.isnan(one.seconds_to_accuracy(0.95))


def test_default_targets_are_reached_by_all_runs(tmp_path):
    results = [write(tmp_path / "one"), write(tmp_path / "other", losses=(3.0, 1.5, 1.2))]
    headings = [str(c.header) for c in race.table(results, None, None, box.SIMPLE_HEAD).columns]
    assert headings[-2:] == ["s to loss 1.2", "s to 88.0%"]
    table = race.table(results, None, 0.9, box.SIMPLE_HEAD)
    assert [list(column.cells) for column in table.columns][-1] == ["30", "nan"]


def test_speeds_are_multiples_of_the_faster_allreduce(tmp_path):
    results = [
        write(tmp_path / "swarm", seconds=5),
        write(tmp_path / "mpi", "allreduce", seconds=10, exposed=0.6),
        write(tmp_path / "hvd", "allreduce", seconds=20),
    ]
    table = race.table(results, 4.0, None, box.SIMPLE_HEAD)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["times all-reduce"] == ["2.00", "1.00", "0.50", "4.00"]
    assert columns["s to loss 1"] == ["15", "30", "60", ""]


def test_the_ideal_allreduce_overlaps_computing_and_communication(tmp_path):
    """A run of 30 steps in 30 s, 60 % of them exposed, computes 0.4 s a step."""
    results = [write(tmp_path / "mpi", "allreduce", seconds=10, exposed=0.6)]
    assert race._ideal(results, 0.1) == pytest.approx(1 / 0.4)
    assert race._ideal(results, 0.8) == pytest.approx(1 / 0.8)
    assert race._ideal(results, None) is None
    assert race._ideal([write(tmp_path / "swarm")], 0.8) is None


def test_runs_are_named_by_the_settings_that_differ(tmp_path):
    def names(*names):
        return [result.name for result in race.finished([tmp_path / name for name in names])]

    write(tmp_path / "eight")
    write(tmp_path / "four", bits=4)
    write(tmp_path / "often", bits=4, local_steps=2)
    write(tmp_path / "other", "allreduce", bits=4)
    assert names("eight", "other") == ["swarm", "allreduce"]
    assert names("eight", "four") == ["swarm [swarm.bits=8]", "swarm [swarm.bits=4]"]
    assert names("four", "often") == ["swarm [swarm.local_steps=4]", "swarm [swarm.local_steps=2]"]


@pytest.mark.parametrize(
    ("factor", "ranks", "flags"),
    [
        (1.0, 4, []),
        (3.0, 4, ["--config.train.slow_factors=(1.0, 1.0, 1.0, 3.0)"]),
        (3.0, 2, ["--config.train.slow_factors=(1.0, 3.0)"]),
        (3.0, 1, []),
    ],
)
def test_the_slow_rank_is_the_last_one(factor, ranks, flags):
    assert race._slow(factor, ranks) == flags


def test_finished_runs_give_a_table_and_a_picture(tmp_path, capsys):
    write(tmp_path / "swarm")
    write(tmp_path / "allreduce", "allreduce")
    paths = [str(tmp_path / name) for name in ("swarm", "allreduce")]
    assert race.main(["--workdirs", *paths, f"--out={tmp_path / 'out'}"]) == 0
    assert "| allreduce" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "race.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "argument", ["--bandwidth=100", "--slow-rank=0.5x", "--rank=3", "--target=2"]
)
def test_bad_arguments_are_refused(argument, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        race.main(["--config=c.py", f"--out={tmp_path}", argument])
    assert refused.value.code == 2
    assert argument.split("=")[-1] in capsys.readouterr().err
