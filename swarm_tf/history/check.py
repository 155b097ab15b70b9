"""Proves of a run that was recorded that every exchange did what it should, on both sides.

    python -m swarm_tf.history DIR

DIR holds what `SwarmCallback(record=DIR)` wrote on all ranks. Exit code 0 if each chunk was
averaged once on either side, by exact opposites, and the mean of all models held (but for what
ranks have left that trained on after their partner's end); 1 and the first violations if not.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

_TOLERANCE = 1e-6
"""Of the sum of all |corrections|, by which float32 may round them as they are added."""

_SHOWN = 20

Entries = list[dict[str, Any]]


def read(directory: str | Path) -> Entries:
    """All ranks' entries.

    Raises:
      ValueError: there are no files, or one has a line that is none.
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
    """Figures of the run, and its violations in words; trainings are checked one by one."""
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
            violations.append(f"rank {end['rank']}: start, steps and corrections miss the end")
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
        asked = [entry for entry in entries if entry["rank"] == initiator]
        answered = [entry for entry in entries if entry["rank"] != initiator]
        figures["blocks"] += asked[0]["applied"] if asked else 0
        figures["blocks_skipped"] += asked[0]["skipped"] if asked else 0
        if len(asked) != 1:
            violations.append(f"{name} was averaged {len(asked)} times by its initiator")
        if mode == "pull":
            if answered:
                violations.append(f"{name} changed rank {answered[0]['rank']}, in mode pull")
            continue
        if len(answered) != 1:
            violations.append(f"{name} was averaged {len(answered)} times by its partner")
        elif len(asked) == 1:
            for what in ("applied", "skipped", "correction"):
                if asked[0][what] != answered[0][what]:
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
    print(f"every chunk averaged once on both sides, oppositely, and the mean held: {words}")
