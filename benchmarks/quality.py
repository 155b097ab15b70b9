"""Does quantization cost accuracy? The same swarm with 8 bits, 4 bits and float32 exchanges.

    python -m benchmarks.quality --data_dir=DIR [--ranks=4] [--epochs=3] [--seeds=0,1,2]

ResNet-20 on Fashion-MNIST; equal steps, equal seeds, only the codec differs. Runs that already
have a summary.json below --out are not repeated. Prints one table, from the files of the runs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.methods import Failed, Method, train

CONFIG = "configs/fashion_mnist_resnet20.py"
VARIANTS = {
    "float32": Method("swarm[swarm.codec=float32]"),
    "8 bits": Method("swarm[swarm.codec=lattice,swarm.bits=8]"),
    "4 bits": Method("swarm[swarm.codec=lattice,swarm.bits=4]"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing and prints the table; returns the exit code of a run that failed."""
    args = _parse(argv)
    for seed in args.seeds:
        for name, method in VARIANTS.items():
            workdir = _workdir(args.out, name, seed)
            if (workdir / "summary.json").exists():
                continue
            try:
                train(method, CONFIG, workdir, args.ranks, _common(args, seed))
            except Failed as error:
                print(error, file=sys.stderr)
                return error.code
    Console(width=110).print(table(args))
    return 0


def _common(args: argparse.Namespace, seed: int) -> list[str]:
    return [
        f"--config.data.data_dir={args.data_dir}",
        f"--config.seed={seed}",
        f"--config.train.epochs={args.epochs}",
        "--config.train.batch_size=64",
        "--config.train.evaluate_every=1000",
        "--config.data.augment=False",
        "--config.optimizer.schedule=cosine",
        "--config.optimizer.warmup_epochs=0.2",
    ]


def table(args: argparse.Namespace) -> Table:
    """Accuracy of the mean model for each seed, and its difference from float32."""
    result = Table(box=box.SIMPLE_HEAD, title=f"{args.ranks} ranks, {args.epochs:g} epochs")
    seeds = [f"seed {seed}" for seed in args.seeds]
    for heading in (
        "exchanges",
        *seeds,
        "mean",
        "points from float32",
        "MB sent",
        "blocks skipped",
    ):
        result.add_column(heading, justify="right")
    exact = None
    for name in VARIANTS:
        runs = [
            json.loads((_workdir(args.out, name, seed) / "summary.json").read_text())
            for seed in args.seeds
        ]
        accuracies = [100 * run["final"]["accuracy"] for run in runs]
        exact = mean(accuracies) if exact is None else exact
        result.add_row(
            name,
            *(f"{a:.2f}" for a in accuracies),
            f"{mean(accuracies):.2f}",
            f"{mean(accuracies) - exact:+.2f}",
            f"{mean(run['bytes_sent'] for run in runs) / 1e6:.1f}",
            f"{mean(run['blocks_skipped'] for run in runs):.0f}",
        )
    return result


def _workdir(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(' ', '_')}_{seed}"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True, help="where TFDS keeps fashion_mnist")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
