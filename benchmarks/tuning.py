"""What accuracy does each algorithm reach with a learning rate tuned for it?

    python -m benchmarks.tuning --config=configs/digits_resnet.py --ranks=4 --out=tuning \\
        --algorithms='single,swarm,allreduce,diloco[diloco.local_steps=8]' [--seeds=3]

The search begins with the recipe's learning rate, and doubles or halves it for as long as accuracy
rises: neither the double nor the half of the final rate is better. The run with the final rate is
then repeated with other seeds. All algorithms get the same passes, schedule and search.

Accuracy is the mean model's on the test split. The rate is chosen on that split too, for all
algorithms, with seed 0 only. Writes OUT/table.md. A run that is finished in OUT is not repeated.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from rich import box
from rich.markup import escape
from rich.table import Table

from benchmarks.methods import Failed, Method, parse_methods, train
from benchmarks.runs import Run, comparison_parser, number, parse, read, write_table
from swarm_tf import UsageError
from swarm_tf.runner import flags

WIDTH = 170  # columns of the table


@dataclass(frozen=True)
class Tuned:
    """A method's accuracy by learning rate, and its runs with the best one, one per seed."""

    method: Method
    by_rate: Mapping[float, float]
    runs: Sequence[Run]


def main(argv: Sequence[str] | None = None) -> int:
    """Tunes, prints; returns 0, or the exit code of the first run that failed."""
    args, rest = _parse(argv)
    run = functools.partial(_run, args, rest)
    try:
        rate = flags.load(args.config).optimizer.learning_rate
        tuned = [tune(method, rate, args.seeds, run) for method in args.algorithms]
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except Failed as error:
        print(error, file=sys.stderr)
        return error.code
    write_table(lambda frame: table(tuned, frame), args.out, WIDTH)
    return 0


def tune(method: Method, start: float, seeds: int, run: Callable[[Method], Run]) -> Tuned:
    """Climbs with seed 0 from the learning rate `start`, then trains with the best on all seeds."""

    def with_rate(rate: float, seed: int) -> Run:
        return run(method.with_settings(optimizer__learning_rate=f"{rate:g}", seed=seed))

    by_rate = climb(lambda rate: accuracy(with_rate(rate, 0)), start)
    best = max(by_rate, key=by_rate.__getitem__)
    return Tuned(method, by_rate, [with_rate(best, seed) for seed in range(seeds)])


def climb(score: Callable[[float], float], start: float) -> dict[float, float]:
    """Scores by rate, from `start` by doubling and halving until neither beats the best."""
    best, scores = start, {start: score(start)}
    for factor in (2.0, 0.5):
        while (rate := best * factor) not in scores:
            scores[rate] = score(rate)
            if scores[rate] > scores[best]:
                best = rate
    return scores


def accuracy(run: Run) -> float:
    """The mean model's, on the test split; 0 if the run diverged and has none."""
    return float(run.summary["final"].get("accuracy") or 0.0)


def table(tuned: Sequence[Tuned], frame: box.Box) -> Table:
    """One line per method."""
    result = Table(box=frame, pad_edge=frame is box.MARKDOWN)
    result.add_column("algorithm", style="bold", no_wrap=True)
    headings = ["passes", "steps a rank", "accuracy", "of seeds", "MB sent", "learning rate"]
    for heading in [*headings, "others tried"]:
        result.add_column(heading, justify="right", no_wrap=True)
    for one in tuned:
        summary = one.runs[0].summary
        scores = [accuracy(run) for run in one.runs]
        best = one.runs[0].config["optimizer"]["learning_rate"]
        others = [f"{r:g}: {one.by_rate[r]:.2%}" for r in sorted(one.by_rate) if r != best]
        result.add_row(
            escape(one.method.text),
            number(summary["epochs"], ".3g"),
            str(summary["local_steps_total"] // summary["ranks"]),
            number(mean(scores), ".2%"),
            f"{min(scores):.2%}..{max(scores):.2%}",
            number(summary["bytes_sent"] / 1e6, ".0f"),
            number(best, "g"),
            ", ".join(others),
        )
    return result


def _run(args: argparse.Namespace, rest: Sequence[str], method: Method) -> Run:
    """The run in OUT/METHOD; trained now if there is none."""
    workdir = args.out / method.directory
    with contextlib.suppress(UsageError):
        return read(workdir)
    train(method, args.config, workdir, args.ranks, rest)
    return read(workdir)


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = comparison_parser(
        "benchmarks.tuning", "Tunes each algorithm's learning rate, and compares.", finished=False
    )
    parser.add_argument(
        "--algorithms", type=parse_methods, required=True, help="NAME[KEY=VALUE,...]..."
    )
    parser.add_argument("--seeds", type=int, default=3, help="%(default)s")
    return parse(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
