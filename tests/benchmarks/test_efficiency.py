"""The comparison at equal passes tunes each method, and trains nothing twice."""

from pathlib import Path

import pytest

from benchmarks import efficiency


@pytest.fixture
def trained(replace_training):
    """Replaces the training: the loss rises with the distance of the rate from 0.004."""

    def write(algorithm, rate, seed, ranks):
        final = {} if rate > 0.007 else {"loss": 1 + abs(rate - 0.004) + seed / 10, "accuracy": 0.5}
        summary = {"final": final, "epochs": 3.0, "steps_per_exchange": 1.5}
        return summary | {"consensus_distance": 0.1}, {}, [{"epoch": 1.0, "pass_loss": 2.0}]

    return replace_training(write)


def run(tmp_path, *more):
    return efficiency.main(
        [
            "--tasks=number_words",
            "--methods=allreduce",
            f"--work={tmp_path / 'work'}",
            f"--results={tmp_path / 'results.jsonl'}",
            *more,
        ]
    )


def test_the_best_rate_gets_all_seeds_and_no_run_is_repeated(trained, tmp_path, capsys):
    assert run(tmp_path, "--seeds=2") == 0
    rates = [(rate, seed) for _, rate, seed in trained]
    assert rates == [(0.002, 0), (0.004, 0), (0.008, 0), (0.004, 1)]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4
    run(tmp_path)
    assert [(rate, seed) for _, rate, seed in trained[4:]] == [(0.004, 2), (0.004, 3), (0.004, 4)]
    capsys.readouterr()
    assert run(tmp_path, "--only-table") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "allreduce" in line]
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert cells[:7] == ["allreduce", "50.00%", "0.00%", "1.2000", "0.1581", "5", "1.5"]
    assert cells[7:] == ["0.004", "0.002: 1.0020, 0.008: inf"]
    assert len(trained) == 7


def test_sets_on_disk_need_a_directory(capsys):
    with pytest.raises(SystemExit) as error:
        efficiency.main(["--tasks=fashion_mnist"])
    assert error.value.code == 2
    assert "fashion_mnist needs --data-dir" in capsys.readouterr().err


def test_every_task_and_method_is_a_valid_run():
    for task in efficiency.TASKS.values():
        assert Path(f"configs/{task.config}.py").exists()
    assert len(set(efficiency.SEEDS)) == len(efficiency.MAIN) + len(efficiency.VARIANTS)
