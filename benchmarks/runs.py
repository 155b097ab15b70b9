"""The files of finished runs, for tables and pictures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Okabe and Ito's palette: told apart by colour-blind readers and in print.
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
        """What tells the run from the others."""
        ranks, data = self.summary["ranks"], self.config["data"]
        words = [self.summary["algorithm"], f"{ranks} rank{'s' * (ranks > 1)}"]
        if data["partition"] == "dirichlet":
            words.append(f"dirichlet {data['dirichlet_alpha']:g}")
        return ", ".join(words)

    def curve(self, key: str, against: str = "epoch") -> tuple[list[float], list[float]]:
        """Passes over the data (or what else) and values of one key, of rank 0's own model."""
        points = [
            (line[against], line[key])
            for line in self.lines
            if line.get(key) is not None and line.get(against) is not None
        ]
        return [x for x, _ in points], [y for _, y in points]


def read(workdir: Path) -> Run:
    """Reads metrics.jsonl, summary.json and config.json; FileNotFoundError if one is missing."""
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in text.splitlines()]
    return Run(lines, summary, config)


def number(value: float | None, form: str) -> str:
    """A formatted number; "-" for null, which stands for NaN in the files."""
    return "-" if value is None else format(value, form)


def style(axes: Any) -> None:
    """How all our pictures look."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
