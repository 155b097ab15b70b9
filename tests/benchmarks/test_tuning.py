"""The tuning finds a rate better than its half and double, and repeats it with other seeds."""

import math

import pytest

from benchmarks import tuning

CONFIG = "configs/digits_resnet.py"  # learning rate 0.05


@pytest.mark.parametrize("best", [0.05, 0.1, 0.8, 0.025, 0.00625])
def test_climb_finds_the_best_rate_and_tries_its_half_and_double(best):
    scores = tuning.climb(lambda rate: -abs(math.log2(rate / best)), 0.05)
    assert max(scores, key=scores.get) == pytest.approx(best)
    assert {best / 2, best, best * 2} <= set(scores)
    assert len(scores) <= 3 + abs(math.log2(best / 0.05))


def test_climb_stops_where_all_rates_are_equally_good():
    assert set(tuning.climb(lambda rate: 0.0, 1.0)) == {0.5, 1.0, 2.0}


@pytest.fixture
def trained(replace_training):
    """Replaces the training: the accuracy falls with the distance of the rate from 0.1."""

    def write(algorithm, rate, seed, ranks):
        if algorithm == "broken":
            return None
        accuracy = None if rate > 0.15 else 0.9 - abs(rate - 0.1) - seed / 100
        summary = {"final": {"accuracy": accuracy}, "epochs": 3.0, "ranks": ranks}
        summary |= {"local_steps_total": 20 * ranks, "bytes_sent": 5_000_000}
        return summary, {"optimizer": {"learning_rate": rate}}, []

    return replace_training(write)


def run(tmp_path, algorithms="swarm", *more):
    arguments = [f"--config={CONFIG}", f"--algorithms={algorithms}", f"--out={tmp_path}", *more]
    return tuning.main(arguments)


def test_best_rate_is_repeated_with_other_seeds(trained, tmp_path, capsys):
    assert run(tmp_path, "swarm,single") == 0
    assert trained[:5] == [
        ("swarm", 0.05, 0), ("swarm", 0.1, 0), ("swarm", 0.2, 0), ("swarm", 0.1, 1),
        ("swarm", 0.1, 2),
    ]  # fmt: skip
    text = (tmp_path / "table.md").read_text()
    row = next(line for line in text.splitlines() if "swarm" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "swarm", "3", "20", "89.00%", "88.00%..90.00%", "5", "0.1", "0.05: 85.00%, 0.2: 0.00%",
    ]  # fmt: skip


def test_finished_runs_are_not_repeated(trained, tmp_path):
    assert run(tmp_path) == 0
    before = len(trained)
    assert run(tmp_path, "swarm", "--seeds=4") == 0
    assert trained[before:] == [("swarm", 0.1, 3)]


def test_a_run_that_fails_ends_the_tuning_with_its_exit_code(trained, tmp_path, capsys):
    assert run(tmp_path, "broken,swarm") == 137
    assert len(trained) == 1
    assert "failed with exit code -9" in capsys.readouterr().err


def test_table_escapes_settings(tmp_path, trained):
    assert run(tmp_path, "swarm[swarm.bits=4]") == 0
    assert "swarm[swarm.bits=4]" in (tmp_path / "table.md").read_text()


def test_a_missing_recipe_is_refused(tmp_path, capsys):
    arguments = ["--config=none.py", "--algorithms=swarm", f"--out={tmp_path}"]
    assert tuning.main(arguments) == 2
    assert "none.py is not a file" in capsys.readouterr().err
