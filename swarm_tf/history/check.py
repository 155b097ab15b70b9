"""Checks, in a run's records, that every exchange did the same on both sides.

    python -m swarm_tf.history DIR

DIR holds what `SwarmCallback(record=DIR)` wrote on all ranks. The exit code is 0 if each chunk was
averaged once on both sides, with exactly opposite corrections, and no exchange moved the mean of
all models (except for corrections withheld from ranks that trained on after their partner's end).
Otherwise it is 1, and the first violations are printed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

_TOLERANCE = 1e-6
"""Rounding error that float32 may add, as a share of the sum of all |corrections|."""

_SHOWN = 20

Entries = list[dict[str, Any]]


def read(directory: str | Path) -> Entries:
    """All ranks' entries.

    Raises:
      ValueError: there are no files, or one has a line that is no entry.
    """
    entries: Entries = []
    files = sorted(Path(directory).glob("rank*.jsonl"))
    if not files:
        raise ValueError(f"{directory} has no files rank*.jsonl; train with record={directory}")
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entries.append(json.loads(line))
            except ValueError:
                raise ValueError(f"{file}, line {number} is cut short") from None
    return entries


def check(entries: Entries) -> tuple[dict[str, int], list[str]]:
    """Counts of the run, and its violations in words; each training is checked separately."""
    figures: Counter[str] = Counter()
    violations: list[str] = []
    trainings: dict[int, Entries] = defaultdict(list)
    for entry in entries:
        trainings[entry["training"]].append(entry)
    for number in sorted(trainings):
        found = _check_training(trainings[number], figures)
        violations += [f"training {number}: {words}" for words in found]
    figures["trainings"] = len(trainings)
    return dict(figures), violations


def _check_training(entries: Entries, figures: Counter[str]) -> list[str]:
    of_kind: dict[str, Entries] = defaultdict(list)
    for entry in entries:
        of_kind[entry["kind"]].append(entry)
    starts, ends = of_kind["start"], of_kind["end"]
    if not starts:
        return ["it has no start"]
    size, mode = starts[0]["ranks"], starts[0]["mode"]
    violations = [
        f"rank {rank} has no {kind}"
        for kind in ("start", "end")
        for rank in sorted(set(range(size)) - {entry["rank"] for entry in of_kind[kind]})
    ]
    violations += _check_exchanges(of_kind["averaged"], mode, figures)
    if mode != "pull" and not of_kind["adopted"] and len(ends) == size:
        moved = sum(end["corrections"] + end["withheld"] for end in ends)
        allowed = _TOLERANCE * max(sum(end["size"] for end in ends), 1e-30)
        if not abs(moved) <= allowed:
            violations.append(
                f"all corrections together moved the sum of all models by {moved:.3g}, more than "
                f"rounding does ({allowed:.3g})"
            )
    for end in ends:
        parts = end["start"] + end["steps"] + end["corrections"]
        gap = abs(parts - end["end"])
        if gap > 1e-6 * (abs(end["end"]) + end["size"] + 1) and not of_kind["adopted"]:
            violations.append(
                f"rank {end['rank']}: start, steps and corrections do not sum to the end"
            )
    return violations


def _check_exchanges(averaged: Entries, mode: str, figures: Counter[str]) -> list[str]:
    violations = []
    sides: dict[tuple[int, int, int], Entries] = defaultdict(list)
    for entry in averaged:
        sides[entry["initiator"], entry["exchange"], entry["chunk"]].append(entry)
    figures["exchanges"] += len({key[:2] for key in sides})
    figures["chunks"] += len(sides)
    for (initiator, exchange, chunk), entries in sorted(sides.items()):
        name = f"chunk {chunk} of exchange {exchange} of rank {initiator}"
        initiated = [entry for entry in entries if entry["rank"] == initiator]
        served = [entry for entry in entries if entry["rank"] != initiator]
        figures["blocks"] += initiated[0]["applied"] if initiated else 0
        figures["blocks_skipped"] += initiated[0]["skipped"] if initiated else 0
        if len(initiated) != 1:
            violations.append(f"{name} was averaged {len(initiated)} times by its initiator")
        if mode == "pull":
            if served:
                violations.append(f"{name} changed rank {served[0]['rank']}, in mode pull")
            continue
        if len(served) != 1:
            violations.append(f"{name} was averaged {len(served)} times by its partner")
        elif len(initiated) == 1:
            for what in ("applied", "skipped", "correction"):
                if initiated[0][what] != served[0][what]:
                    violations.append(f"{name} is not opposite: {what} differs")
                    break
    return violations


def main() -> None:
    """The command."""
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if len(sys.argv) == 2 else 2)
    try:
        figures, violations = check(read(sys.argv[1]))
    except ValueError as error:
        print(f"swarm_tf.history: {error}", file=sys.stderr)
        sys.exit(2)
    words = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in figures.items())
    for violation in violations[:_SHOWN]:
        print(violation)
    if violations:
        print(f"{len(violations)} violations in {words}")
        sys.exit(1)
    print(f"every chunk averaged once on both sides, by opposites, and the mean held: {words}")
