"""What benchmarks that compare runs share: arguments, reading a run's files, tables, style."""

import argparse
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from swarm_tf import UsageError

# Okabe and Ito's palette: colour-blind readers can tell these apart, also in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DPI = 150


@dataclass(frozen=True)
class Run:
    """The files of one workdir."""

    lines: list[dict[str, Any]]
    summary: dict[str, Any]
    config: dict[str, Any]

    @property
    def label(self) -> str:
        """A short name: algorithm, ranks and, if it is skewed, the partition of the data."""
        ranks, data = self.summary["ranks"], self.config["data"]
        words = [self.summary["algorithm"], f"{ranks} rank{'s' * (ranks > 1)}"]
        if data["partition"] == "dirichlet":
            words.append(f"dirichlet {data['dirichlet_alpha']:g}")
        return ", ".join(words)

    def curve(self, key: str, against: str = "epoch") -> tuple[list[float], list[float]]:
        """Values of `against` and `key` from the log lines that have both (rank 0's own model)."""
        points = [
            (line[against], line[key])
            for line in self.lines
            if line.get(key) is not None and line.get(against) is not None
        ]
        return [x for x, _ in points], [y for _, y in points]


def read(workdir: Path) -> Run:
    """Reads metrics.jsonl, summary.json and config.json.

    Raises:
      UsageError: if one is missing.
    """
    try:
        text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename} is missing: not a finished run") from None
    lines = [json.loads(line) for line in text.splitlines()]
    return Run(lines, summary, config)


def number(value: float | None, form: str) -> str:
    """A formatted number; "-" for null, which stands for NaN in the files."""
    return "-" if value is None else format(value, form)


def style(axes: Any) -> None:
    """Apply the style that all plots share."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def write_table(table: Callable[[box.Box], Table], out: Path, width: int) -> None:
    """Prints `table(frame)`, at least `width` columns wide, and writes it to OUT/table.md."""
    out.mkdir(parents=True, exist_ok=True)
    # Never cut a number short: a narrow terminal may wrap, a pipe has no width at all.
    Console(width=max(Console().width, width)).print(table(box.SIMPLE_HEAD))
    markdown = Console(width=width, file=io.StringIO(), record=True)
    markdown.print(table(box.MARKDOWN))
    lines = [line.strip() for line in markdown.export_text().splitlines()]
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def comparison_parser(
    program: str, description: str, finished: bool = True
) -> argparse.ArgumentParser:
    """The arguments of all comparisons: a recipe or (if `finished`) finished runs, ranks, OUT."""
    result = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog="--config.KEY=VALUE goes to every run.",
        allow_abbrev=False,
    )
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="configs/NAME.py")
    if finished:
        what.add_argument(
            "--workdirs", nargs="+", type=Path, help="of finished runs; trains nothing"
        )
    result.add_argument(
        "--ranks", type=int, default=4, help="of all methods but single; %(default)s"
    )
    result.add_argument("--out", type=Path, required=True, help="directory of the results")
    return result


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """The parsed arguments, and the --config ones for train.py; any other is refused."""
    args, rest = parser.parse_known_args(argv)
    for unknown in rest:
        if not unknown.lstrip("-").startswith(("config.", "noconfig.")):
            parser.error(f"unknown argument {unknown}; only --config.KEY=VALUE may be added")
    return args, rest


def exit_code(code: int) -> int:
    """A subprocess's exit code as a shell reports it: 128 plus the number of a signal."""
    return code if code >= 0 else 128 - code
