"""The comparison reads the files of runs, draws curves, and stops at a run that fails."""

import io
import json
import struct

import pytest
from rich.console import Console

from benchmarks import compare, methods


def write_run(workdir, algorithm, ranks, *, accuracy=0.95, partition="iid", **final):
    """Writes the workdir of a finished run; one of its losses was NaN and is null."""
    workdir.mkdir(parents=True)
    lines = [
        {"step": 10 * e, "rank": 0, "epoch": e, "time_seconds": e, "loss": 1 / (1 + e)}
        for e in range(8)
    ]
    lines += [
        {"step": 40, "rank": 0, "epoch": 4, "time_seconds": 4, "loss": None},
        {"step": 40, "rank": 0, "epoch": 4.0, "test_accuracy": 0.8, "test_loss": 0.5},
        {"step": 80, "rank": 0, "epoch": 8.0, "test_accuracy": 0.9, "test_loss": 0.3},
    ]
    summary = {
        "algorithm": algorithm,
        "ranks": ranks,
        "epochs": 8.0,
        "final": {"loss": 0.25, "accuracy": accuracy, **final},
        "per_rank_accuracy": {"min": 0.93, "max": 0.96},
        "exchanges": 123,
        "bytes_sent": 4_500_000,
        "exposed_fraction": 0.012,
        "data_wait_fraction": 0.004,
        "train_seconds": 7.5,
        "examples_per_second": 1600.0,
    }
    config = {"model": {"name": "resnet8"}, "data": {"name": "digits"}}
    config["data"] |= {"partition": partition, "dirichlet_alpha": 0.3}
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (workdir / "summary.json").write_text(json.dumps(summary))
    (workdir / "config.json").write_text(json.dumps(config))


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "single", "single", 1)
    write_run(tmp_path / "swarm", "swarm", 4, accuracy=None)
    return [compare.read(tmp_path / name) for name in ("single", "swarm")]


def test_a_curve_has_the_lines_that_contain_its_key(runs):
    passes, losses = runs[0].curve("loss")
    assert passes == list(range(8))
    assert losses[:2] == [1.0, 0.5]
    assert runs[0].curve("test_accuracy") == ([4.0, 8.0], [0.8, 0.9])


def test_the_table_has_a_row_for_each_run(runs):
    console = Console(width=compare.WIDTH, record=True, file=io.StringIO())
    console.print(compare.table(runs))
    text = console.export_text()
    assert "resnet8 on digits" in text
    single, swarm = (next(x for x in text.splitlines() if n in x) for n in ("single", "swarm"))
    cells = ["8", "95.00%", "93.0%..96.0%", "0.2500", "123", "4.5"]
    cells += ["1.2%", "0.4%", "7.5", "1600"]
    assert single.split() == ["single,", "1", "rank", *cells]
    assert swarm.split()[:5] == ["swarm,", "4", "ranks", "8", "-"]


def test_the_table_has_a_bleu_column_only_if_a_run_has_bleu(runs, tmp_path):
    def headings(some):
        return [str(column.header) for column in compare.table(some).columns]

    write_run(tmp_path / "translation", "single", 1, bleu=21.7, bleu_signature="tok:13a")
    translation = compare.read(tmp_path / "translation")
    assert "BLEU" not in headings(runs)
    assert headings([*runs, translation])[2] == "BLEU"
    cells = list(compare.table([*runs, translation]).columns[2].cells)
    assert cells == ["", "", "21.70"]


def test_the_picture_is_a_png_of_the_requested_size(runs, tmp_path):
    path = tmp_path / "curves.png"
    compare.draw(runs, path, size=(1200, 600))
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (1200, 600)


def arguments(tmp_path, *more):
    return ["--config=c.py", f"--out={tmp_path}", *more]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Replaces the training: writes a workdir, or fails with the exit code set for it."""
    codes, started = {}, []

    def start(ranks, line, link=None):
        algorithm = next(a for a in line if a.startswith("--config.algorithm=")).split("=")[1]
        started.append((algorithm, ranks, "--config.seed=3" in line))
        if algorithm not in codes:
            write_run(tmp_path / algorithm, algorithm, 1)
        return codes.get(algorithm, 0), ""

    monkeypatch.setattr(methods, "start", start)
    return codes, started


def test_a_comparison_trains_each_method_and_draws_the_curves(trained, tmp_path, capsys):
    assert compare.main(arguments(tmp_path, "--config.seed=3")) == 0
    assert trained[1] == [("single", 1, True), ("swarm", 4, True)]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "curves.png" in shown


def test_finished_runs_are_compared_without_training(runs, trained, tmp_path, capsys):
    write_run(tmp_path / "skewed", "swarm", 4, partition="dirichlet")
    workdirs = [str(tmp_path / name) for name in ("swarm", "skewed")]
    out = tmp_path / "new" / "out"
    assert compare.main(["--workdirs", *workdirs, f"--out={out}"]) == 0
    assert trained[1] == []
    assert (out / "curves.png").exists()
    for text in (capsys.readouterr().out, (out / "table.md").read_text()):
        assert "swarm, 4 ranks, dirichlet 0.3" in text
    assert "|---" in (out / "table.md").read_text()
    assert compare.main(["--workdirs", str(tmp_path / "none"), f"--out={out}"]) == 2
    assert "not a finished run" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (-9, 137)])
def test_a_run_that_fails_ends_the_comparison_with_its_exit_code(
    trained, tmp_path, capsys, code, expected
):
    codes, started = trained
    codes["single"] = code
    assert compare.main(arguments(tmp_path)) == expected
    assert started == [("single", 1, False)]
    assert f"single failed with exit code {code}" in capsys.readouterr().err


def test_an_unknown_argument_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        compare.main(arguments(tmp_path, "--rank=3"))
    assert end.value.code == 2
    assert "unknown argument --rank=3" in capsys.readouterr().err
