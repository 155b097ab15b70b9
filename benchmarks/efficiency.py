"""How good is the mean model after the same passes over the data? Learning rates tuned for each.

    python -m benchmarks.efficiency --data-dir=DIR --work=DIR [--tasks=...] [--methods=...]

Four ranks, without a limit on their links: this is what a method makes of a pass; race.py says how
long a pass takes. Each method begins with the recipe's learning rate, and doubles and halves it for
as long as the test loss of seed 0 falls; the best one is repeated with more seeds: five for `MAIN`,
two for `VARIANTS`.

Each finished run is a line of docs/efficiency.jsonl and is not repeated, so that the whole, some
seven hours of two cores, may be stopped and continued. --only-table trains nothing.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.methods import Failed, Method, parse_methods, train
from benchmarks.runs import number, read
from benchmarks.tuning import climb
from swarm_tf.runner import flags

RANKS = 4
RESULTS = Path(__file__).parents[1] / "docs" / "efficiency.jsonl"
WIDTH = 180  # columns of a table


@dataclass(frozen=True)
class Task:
    """A recipe, shortened until a run takes some two minutes.

    The file of results has no flags: whoever changes them must remove the lines of the task.

    Attributes:
      config: the name of the recipe.
      flags: what is changed, for all methods alike.
      needs_files: whether it reads sets that TFDS has prepared.
    """

    config: str
    flags: Sequence[str]
    needs_files: bool = True


TASKS = {
    "number_words": Task(
        "number_words_transformer_xl",
        ["data.train_examples=24000", "train.epochs=1", "optimizer.warmup_epochs=0.42"],
        needs_files=False,
    ),
    "fashion_mnist": Task(
        "fashion_mnist_resnet20",
        ["model.name=resnet8", "train.epochs=1", "optimizer.warmup_epochs=0.2"],
    ),
    "libreoffice_help": Task(
        "libreoffice_help_transformer",
        ["train.epochs=1", "train.epoch_multiplier=2", "optimizer.warmup_epochs=0.5"],
    ),
}
COMMON = ["train.evaluate_every=100", "train.checkpoint_every=None"]

MAIN = parse_methods(
    "allreduce,local_sgd[local_sgd.local_steps=4],"
    "swarm[swarm.local_steps=auto,swarm.bits=4],swarm[swarm.local_steps=4,swarm.bits=8]"
)
VARIANTS = parse_methods(
    "swarm[swarm.local_steps=1,swarm.bits=4],swarm[swarm.local_steps=1,swarm.bits=8],"
    "swarm[swarm.local_steps=1,swarm.codec=float32],"
    "swarm[swarm.local_steps=1,swarm.codec=float32,swarm.mode=blocking],"
    "swarm[swarm.local_steps=2,swarm.bits=4],swarm[swarm.local_steps=4,swarm.bits=4],"
    "swarm[swarm.local_steps=4,swarm.codec=float32],"
    "swarm[swarm.local_steps=4,swarm.codec=float32,swarm.mode=blocking],"
    "swarm[swarm.local_steps=8,swarm.bits=8],"
    "swarm[swarm.local_steps=auto,swarm.bits=4,swarm.average_optimizer=True]"
)
SEEDS = {**dict.fromkeys(MAIN, 5), **dict.fromkeys(VARIANTS, 2)}


@dataclass(frozen=True)
class Finished:
    """One run; a line of the file.

    Attributes:
      task, method, rate, seed: what ran.
      accuracy, loss: of the mean model on the test split; None if it diverged.
      passes: over the data, by all ranks together.
      steps_per_exchange: local steps per exchange that a rank requested.
      losses: [[pass, mean training loss in that pass], ...].
    """

    task: str
    method: str
    rate: float
    seed: int
    accuracy: float | None
    loss: float | None
    passes: float
    steps_per_exchange: float | None
    consensus_distance: float | None
    losses: Sequence[Sequence[float]]


class Results:
    """The finished runs, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        every = (Finished(**json.loads(line)) for line in text.splitlines())
        self.runs = {(one.task, one.method, one.rate, one.seed): one for one in every}

    def add(self, run: Finished) -> None:
        """Append a run to the file."""
        self.runs[run.task, run.method, run.rate, run.seed] = run
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(run)) + "\n")

    def tuned(self, task: str, method: Method) -> tuple[dict[float, float], list[Finished]]:
        """The loss of seed 0 by learning rate, and the runs with the best rate by seed."""
        mine = [r for r in self.runs.values() if (r.task, r.method) == (task, method.text)]
        by_rate = {run.rate: loss_of(run) for run in mine if run.seed == 0}
        best = min(by_rate, key=by_rate.__getitem__, default=None)
        return by_rate, sorted((r for r in mine if r.rate == best), key=lambda r: r.seed)


def loss_of(run: Finished) -> float:
    """The test loss; infinite if the run diverged."""
    return float("inf") if run.loss is None else run.loss


def fill(
    results: Results, name: str, method: Method, seeds: int, data_dir: str | None, work: Path
) -> None:
    """Train what is missing of one method on one task."""
    task = TASKS[name]
    config = f"configs/{task.config}.py"
    recipe = flags.load(config)
    own = [f"data.data_dir={data_dir}"] if task.needs_files else []
    if recipe.model.name.startswith("transformer"):
        own += ["train.bleu=False", f"data.cache_dir={work / 'tokens'}"]
    rest = [f"--config.{flag}" for flag in (*task.flags, *COMMON, *own)]

    def run(rate: float, seed: int) -> Finished:
        if (found := results.runs.get((name, method.text, rate, seed))) is None:
            workdir = work / name / method.directory
            with_rate = method.with_settings(optimizer__learning_rate=f"{rate:g}", seed=seed)
            train(with_rate, config, workdir, RANKS, rest)
            found = _finished(name, method, rate, seed, workdir)
            shutil.rmtree(workdir)
            results.add(found)
        return found

    climb(lambda rate: -loss_of(run(rate, 0)), recipe.optimizer.learning_rate)
    best = results.tuned(name, method)[1][0].rate
    for seed in range(seeds):
        run(best, seed)


def _finished(task: str, method: Method, rate: float, seed: int, workdir: Path) -> Finished:
    run = read(workdir)
    summary = run.summary
    return Finished(
        task,
        method.text,
        rate,
        seed,
        accuracy=summary["final"].get("accuracy"),
        loss=summary["final"].get("loss"),
        passes=round(summary["epochs"], 3),
        steps_per_exchange=summary["steps_per_exchange"],
        consensus_distance=summary["consensus_distance"],
        losses=[[round(x, 3), round(y, 4)] for x, y in zip(*run.curve("pass_loss"), strict=True)],
    )


def table(results: Results, name: str, methods: Sequence[Method], frame: box.Box) -> Table:
    """One line per method that has runs."""
    shown = Table(box=frame, pad_edge=frame is box.MARKDOWN)
    shown.add_column(name, style="bold", no_wrap=True)
    headings = ["accuracy", "deviation", "test loss", "deviation", "seeds", "steps per exchange"]
    for heading in (*headings, "learning rate", "others tried (loss)"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for method in methods:
        by_rate, runs = results.tuned(name, method)
        if not runs:
            continue
        accuracy = [run.accuracy or 0.0 for run in runs]
        losses = [loss_of(run) for run in runs]
        others = [f"{r:g}: {by_rate[r]:.4f}" for r in sorted(by_rate) if r != runs[0].rate]
        shown.add_row(
            escape(method.text.replace("swarm.", "").replace("local_sgd.", "")),
            f"{statistics.mean(accuracy):.2%}",
            number(statistics.stdev(accuracy) if len(runs) > 1 else None, ".2%"),
            f"{statistics.mean(losses):.4f}",
            number(statistics.stdev(losses) if len(runs) > 1 else None, ".4f"),
            str(len(runs)),
            number(_mean(run.steps_per_exchange for run in runs), ".1f"),
            f"{runs[0].rate:g}",
            ", ".join(others),
        )
    return shown


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, prints; returns 0, or the exit code of the first run that failed."""
    args = _parse(argv)
    results = Results(args.results)
    methods: Mapping[Method, int] = {
        one: min(SEEDS.get(one, 2), args.seeds) for one in args.methods
    }
    if not args.only_table:
        for name in args.tasks:
            for method, seeds in methods.items():
                try:
                    fill(results, name, method, seeds, args.data_dir, args.work)
                except Failed as error:
                    print(error, file=sys.stderr)
                    return error.code
    console = Console(width=WIDTH)
    for name in args.tasks:
        console.print(table(results, name, list(methods), box.MARKDOWN))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.efficiency",
        description="Accuracy and loss at equal passes, learning rates tuned for each method.",
        allow_abbrev=False,
    )
    parser.add_argument("--tasks", type=_tasks, default=list(TASKS), help=", ".join(TASKS))
    parser.add_argument(
        "--methods", type=parse_methods, default=[*MAIN, *VARIANTS], help="NAME[KEY=VALUE,...],..."
    )
    parser.add_argument("--seeds", type=int, default=5, help="at most so many; %(default)s")
    parser.add_argument("--data-dir", help="of the sets that TFDS has prepared")
    parser.add_argument("--work", type=Path, default=Path("runs/efficiency"), help="%(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="%(default)s")
    parser.add_argument("--only-table", action="store_true", help="train nothing")
    args = parser.parse_args(argv)
    missing = [n for n in args.tasks if TASKS[n].needs_files and not args.data_dir]
    if missing and not args.only_table:
        parser.error(f"{', '.join(missing)} needs --data-dir")
    return args


def _tasks(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in TASKS:
            raise argparse.ArgumentTypeError(f"{name} must be one of {', '.join(TASKS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
