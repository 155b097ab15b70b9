"""Which algorithm is faster, at what accuracy? All run the same recipe, one after another.

    python -m benchmarks.race --config=configs/digits_resnet.py --ranks=4 --out=race \\
        --algorithms='swarm,swarm[swarm.bits=4],allreduce' [--bandwidth=100mbit] [--slow-rank=3x] \\
        [--stopped-rank=30s]

A method is the name of an algorithm, with its own settings in brackets where it has some; any
--config.KEY=VALUE goes to all. All make the same passes over the data. --bandwidth puts every rank
behind a link of its own (testbed/network.py); --slow-rank makes the last rank compute slower,
--stopped-rank stops it for a while. Where ranks share cores, a rank that computes less leaves more
to the others: --config.train.step_seconds=0.1 makes every rank pause until a step has taken that
long, as on a machine of its own.

Writes OUT/table.md and OUT/race.png from the files that the runs leave in OUT/METHOD, or with
--workdirs from finished runs.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from benchmarks.methods import Failed, parse_methods, start, train
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
from swarm_tf.config import flatten
from testbed.network import Network, Unavailable, bits_per_second
from testbed.processes import NotStopped, stopped_once

WIDTH = 180  # columns of the table
STOPPED_AFTER = 20  # the step after which a rank is stopped


@dataclass(frozen=True)
class Result:
    """A method's finished run."""

    name: str
    run: Run

    @property
    def is_allreduce(self) -> bool:
        """Whether it is an all-reduce, of whose speed the others' speeds are multiples."""
        return bool(self.run.summary["algorithm"] == "allreduce")

    @property
    def rate(self) -> float:
        """Local steps a second of a rank, on average over ranks, evaluations not counted."""
        return float(self.run.summary["steps_per_second"]["mean"])

    @property
    def computing(self) -> float:
        """Seconds of a local step, without the exposed part of its communication."""
        return (1 - float(self.run.summary["exposed_fraction"])) / self.rate

    def seconds_to_loss(self, loss: float) -> float:
        """Training seconds until the mean loss of a pass has come down to `loss`; NaN if never."""
        seconds, losses = self.run.curve("pass_loss", "train_seconds")
        return _first_time(seconds, [-value for value in losses], -loss)

    def seconds_to_accuracy(self, accuracy: float) -> float:
        """Training seconds until a test of rank 0's own model gave `accuracy`; NaN if never."""
        return _first_time(*self.run.curve("test_accuracy", "train_seconds"), accuracy)


def _first_time(times: Sequence[float], values: Sequence[float], goal: float) -> float:
    """When `values` first reach `goal`, interpolated linearly; NaN if never."""
    highest = np.maximum.accumulate(values) if values else np.array([-np.inf])
    if highest[-1] < goal:
        return float("nan")
    at = int(np.argmax(highest >= goal))
    span = slice(max(at - 1, 0), at + 1)
    return float(np.interp(goal, highest[span], times[span]))


def finished(workdirs: Sequence[Path]) -> list[Result]:
    """Results of finished runs, named by algorithm and by the settings in which its runs differ."""
    runs = [read(workdir) for workdir in workdirs]
    configs = [flatten(run.config) for run in runs]
    result = []
    for run, own in zip(runs, configs, strict=True):
        same_algorithm = [other for other in configs if other["algorithm"] == own["algorithm"]]
        settings = {
            key: value
            for key, value in own.items()
            if any(other.get(key) != value for other in same_algorithm)
        }
        words = ", ".join(f"{key}={value}" for key, value in settings.items())
        result.append(Result(own["algorithm"] + (f" [{words}]" if words else ""), run))
    return result


def table(
    results: Sequence[Result], ideal: float | None, target: float | None, frame: box.Box
) -> Table:
    """One line per run; speeds as multiples of the fastest all-reduce's.

    Args:
      ideal: steps a second of an all-reduce that overlaps perfectly; None if not measured.
      target: accuracy whose time is reported; None for the highest that all runs reached.
    """
    loss = max(min(r.run.curve("pass_loss")[1], default=-np.inf) for r in results)
    if target is None:
        target = min(max(r.run.curve("test_accuracy")[1], default=np.inf) for r in results)
    best = max((r.rate for r in results if r.is_allreduce), default=None)
    translates = any(r.run.summary["final"].get("bleu") for r in results)
    headings = ["passes", *(["BLEU"] if translates else []), "accuracy", "loss", "training loss"]
    headings += [
        "steps/s",
        "per rank",
        "times all-reduce",
        "exposed",
        "MB sent",
        f"s to loss {loss:.3g}",
        f"s to {target:.1%}",
    ]
    result = Table(box=frame, pad_edge=frame is box.MARKDOWN)
    result.add_column("run", style="bold", no_wrap=True)
    for heading in headings:
        result.add_column(heading, justify="right", no_wrap=True)
    for one in results:
        summary, final = one.run.summary, one.run.summary["final"]
        per_rank = summary["steps_per_second"]
        result.add_row(
            escape(one.name),
            number(summary["epochs"], ".3g"),
            *([number(final.get("bleu"), ".2f")] if translates else []),
            number(final.get("accuracy"), ".2%"),
            number(final.get("loss"), ".4f"),
            number((one.run.curve("pass_loss")[1] or [None])[-1], ".4f"),
            number(one.rate, ".3g"),
            f"{per_rank['min']:.3g}..{per_rank['max']:.3g}",
            number(one.rate / best if best else None, ".2f"),
            number(summary["exposed_fraction"], ".1%"),
            number(summary["bytes_sent"] / 1e6, ".0f"),
            number(one.seconds_to_loss(loss), ".0f"),
            number(one.seconds_to_accuracy(target), ".0f"),
        )
    if ideal is not None:
        cells = [""] * len(headings)
        cells[headings.index("steps/s")] = number(ideal, ".3g")
        cells[headings.index("times all-reduce")] = number(ideal / best if best else None, ".2f")
        result.add_row("all-reduce, overlapped perfectly", *cells)
    return result


def draw(results: Sequence[Result], path: Path) -> None:
    """Loss (above) and accuracy (below) against passes, training seconds and bytes sent."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, 3, figsize=(15, 8), sharey="row", layout="constrained")
    axis_names = {
        "epoch": ("passes over the data, all ranks together", 1.0),
        "train_seconds": ("seconds of training", 1.0),
        "bytes_sent": ("MB sent by rank 0", 1e-6),
    }
    curves = [("pass_loss", "training loss"), ("test_accuracy", "test accuracy of rank 0")]
    for axes_of_row, (key, title) in zip(rows, curves, strict=True):
        for axes, (against, (words, unit)) in zip(axes_of_row, axis_names.items(), strict=True):
            for result, colour in zip(results, COLOURS * 2, strict=False):
                x, y = result.run.curve(key, against)
                scaled = [value * unit for value in x]
                axes.plot(scaled, y, color=colour, label=result.name, marker=".", linewidth=1.2)
            axes.set_xlabel(words)
            style(axes)
        axes_of_row[0].set_ylabel(title)
    rows[0][0].legend(frameon=False)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, prints, draws; returns 0, or the exit code of the first run that failed."""
    args, rest = _parse(argv)
    link = Network(args.ranks, args.bandwidth) if args.bandwidth else None
    try:
        if args.workdirs:
            results = finished(args.workdirs)
            return _report(args, results, args.alone)
        with link or contextlib.nullcontext():
            return _race(args, rest, link)
    except (Unavailable, UsageError, NotStopped) as error:
        print(error, file=sys.stderr)
        return 2
    except Failed as error:
        print(error, file=sys.stderr)
        return error.code


def _race(args: argparse.Namespace, rest: Sequence[str], link: Network | None) -> int:
    workdirs = []
    for method in args.algorithms:
        workdir = args.out / method.directory
        ranks = method.ranks(args.ranks)
        slow = _slow(args.slow_rank, ranks)
        stopped: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if args.stopped_rank and ranks > 1:
            stopped = stopped_once(workdir, ranks - 1, args.stopped_rank, STOPPED_AFTER)
        with stopped:
            train(method, args.config, workdir, args.ranks, [*rest, *slow], link)
        workdirs.append(workdir)
    results = finished(workdirs)
    weights = results[0].run.summary["parameters"]
    line = ["-m", "benchmarks.allreduce", f"--weights={weights}", "--rounds=5"]
    code, output = start(args.ranks, line, link, quiet=True)
    fastest = None
    if code == 0:
        seconds = json.loads(output.splitlines()[-1])["seconds"]
        fastest = min(seconds.values())
        print("all-reduce alone, seconds:", seconds)
    return _report(args, results, fastest)


def _slow(factor: float, ranks: int) -> list[str]:
    """Flags that make the steps of the last of several ranks `factor` times longer."""
    if factor == 1 or ranks == 1:
        return []
    return [f"--config.train.slow_factors={(1.0,) * (ranks - 1) + (factor,)}"]


def _ideal(results: Sequence[Result], alone: float | None) -> float | None:
    """Steps a second if an all-reduce of `alone` seconds hid behind the computation."""
    allreduces = [r for r in results if r.is_allreduce]
    if alone is None or not allreduces:
        return None
    return 1 / max(max(allreduces, key=lambda r: r.rate).computing, alone)


def _report(args: argparse.Namespace, results: Sequence[Result], alone: float | None) -> int:
    ideal = _ideal(results, alone)
    write_table(lambda frame: table(results, ideal, args.target, frame), args.out, WIDTH)
    draw(results, args.out / "race.png")
    print(f"picture: {args.out / 'race.png'}")
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = comparison_parser(
        "benchmarks.race", "Trains once per method, all by the same recipe, and compares."
    )
    parser.add_argument(
        "--algorithms",
        type=parse_methods,
        default="swarm,allreduce",
        help="NAME[KEY=VALUE,...],...",
    )
    parser.add_argument("--bandwidth", type=_bandwidth, help="of each rank's link: 100mbit, 1gbit")
    parser.add_argument(
        "--slow-rank",
        type=_factor,
        default=1.0,
        help="3x: the last rank's steps take three times as long",
    )
    parser.add_argument(
        "--stopped-rank",
        type=_seconds,
        default=0.0,
        help="30s: the last rank is stopped (SIGSTOP) for so long, once it trains",
    )
    parser.add_argument(
        "--target", type=_share, help="accuracy whose time is reported; default: what all reach"
    )
    parser.add_argument(
        "--alone", type=float, help="with --workdirs: seconds of an all-reduce alone"
    )
    return parse(parser, argv)


def _bandwidth(text: str) -> str:
    try:
        bits_per_second(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return share


def _seconds(text: str) -> float:
    seconds = float(text.removesuffix("s"))
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0s, and finite")
    return seconds


def _factor(text: str) -> float:
    factor = float(text.removesuffix("x"))
    if factor < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1x or more")
    return factor


if __name__ == "__main__":
    sys.exit(main())
