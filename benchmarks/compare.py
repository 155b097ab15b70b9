"""Does a swarm reach the accuracy of one rank, and at what cost?

    python -m benchmarks.compare --config=configs/digits_resnet.py --out=demo

trains once per algorithm, one after another, then prints a table (OUT/table.md) and draws
OUT/curves.png from the files the runs left in OUT/ALGORITHM. Any --config.KEY=VALUE goes to every
run. All make the same passes over the data, unless the recipe gives the swarm more
(train.epoch_multiplier).

    python -m benchmarks.compare --workdirs DIR DIR --out=demo

prints and draws the same from finished runs, for instance of a cluster.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.methods import Failed, Method, train
from benchmarks.runs import (
    COLOURS,
    DPI,
    Run,
    comparison_parser,
    number,
    parse,
    read,
    style,
    write_table,
)
from swarm_tf import UsageError

WIDTH = 145  # columns of the table


def table(runs: Sequence[Run], frame: box.Box = box.SIMPLE_HEAD) -> Table:
    """One line per run; accuracy is the mean model's, "per rank" the worst and the best model's.

    For translation, accuracy is that of the next token; BLEU has a column of its own.
    """
    result = Table(title=_title(runs), box=frame, pad_edge=frame is box.MARKDOWN)
    result.add_column("run", style="bold", no_wrap=True)
    rows = [_cells(run.summary) for run in runs]
    reported = [heading for heading in rows[0] if any(row[heading] != "" for row in rows)]
    for heading in reported:
        result.add_column(heading, justify="right", no_wrap=True)
    for run, row in zip(runs, rows, strict=True):
        result.add_row(run.label, *(row[heading] for heading in reported))
    return result


def draw(runs: Sequence[Run], path: Path, size: tuple[int, int] = (1650, 660)) -> None:
    """Writes a PNG of `size` pixels: training loss and test accuracy against passes made."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    inches = (size[0] / DPI, size[1] / DPI)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=inches, layout="constrained")
    figure.suptitle(_title(runs))
    for run, colour in zip(runs, COLOURS, strict=False):
        label = run.label
        final = number(run.summary["final"].get("accuracy"), ".2%")
        left.plot(*run.curve("loss"), color=colour, label=label, linewidth=1.4)
        right.plot(*run.curve("test_accuracy"), color=colour, label=f"{label}: {final}", marker=".")
        _mark_final(right, run, colour)
    left.set(title="training loss (rank 0)", ylabel="loss", yscale="log")
    right.set(title="test accuracy (rank 0; star and number: mean model)", ylabel="accuracy")
    for axes in (left, right):
        axes.set_xlabel("passes over the data, all ranks together")
        style(axes)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, prints, draws; returns 0, or the exit code of the first run that failed."""
    args, rest = _parse(argv)
    workdirs = args.workdirs
    try:
        if not workdirs:
            workdirs = [args.out / algorithm for algorithm in args.algorithms]
            for algorithm, workdir in zip(args.algorithms, workdirs, strict=True):
                train(Method(algorithm), args.config, workdir, args.ranks, rest)
        runs = [read(workdir) for workdir in workdirs]
    except Failed as error:
        print(error, file=sys.stderr)
        return error.code
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    _report(runs, args.out)
    return 0


def _report(runs: Sequence[Run], out: Path) -> None:
    write_table(lambda frame: table(runs, frame), out, WIDTH)
    draw(runs, out / "curves.png")
    print(f"curves: {out / 'curves.png'}")


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = comparison_parser("benchmarks.compare", "Trains once per algorithm and compares.")
    parser.add_argument("--algorithms", type=_names, default="single,swarm", help="%(default)s")
    return parse(parser, argv)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _title(runs: Sequence[Run]) -> str:
    config = runs[0].config
    return f"{config['model']['name']} on {config['data']['name']}"


def _cells(summary: dict[str, Any]) -> dict[str, str]:
    """A run's cells by heading; empty where the run has no such metric."""
    final, separate = summary["final"], summary["per_rank_accuracy"]
    low, high = (number(separate.get(end), ".1%") for end in ("min", "max"))
    return {
        "passes": number(summary["epochs"], ".3g"),
        "BLEU": number(final["bleu"], ".2f") if "bleu" in final else "",
        "accuracy": number(final.get("accuracy"), ".2%"),
        "per rank": f"{low}..{high}",
        "loss": number(final.get("loss"), ".4f"),
        "exchanges": str(summary["exchanges"]),
        "MB sent": f"{summary['bytes_sent'] / 1e6:.1f}",
        "exposed": number(summary["exposed_fraction"], ".1%"),
        "data": number(summary["data_wait_fraction"], ".1%"),
        "train s": number(summary["train_seconds"], ".1f"),
        "examples/s": number(summary["examples_per_second"], ".0f"),
    }


def _mark_final(axes: Any, run: Run, colour: str) -> None:
    accuracy = run.summary["final"].get("accuracy")
    if accuracy is None:
        return
    axes.plot(
        run.summary["epochs"],
        accuracy,
        marker="*",
        markersize=14,
        alpha=0.7,
        color=colour,
        markeredgecolor="black",
        linestyle="none",
        clip_on=False,
        zorder=3,
    )


if __name__ == "__main__":
    sys.exit(main())
