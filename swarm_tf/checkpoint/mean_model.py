"""The command `swarm-tf consensus DIR [FILE]`: the mean model of a run's newest checkpoints.

It reads files only: the run may be training, finished or dead. DIR is the workdir of train.py, or
the directory of a `swarm_tf.Checkpoint`. FILE, by default DIR/consensus.weights.h5, is for
`model.load_weights`. The mean is that of the ranks whose newest checkpoint can be read.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from swarm_tf import files
from swarm_tf.checkpoint import layout
from swarm_tf.checkpoint.store import DamagedError, Store, layout_path, ranks, stages
from swarm_tf.errors import UsageError

USAGE = "usage: swarm-tf consensus DIR [FILE]"


def main(arguments: list[str]) -> int:
    """Write the file; returns the exit code."""
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        print(__doc__ if arguments == ["--help"] else USAGE, file=sys.stderr)
        return 0 if arguments == ["--help"] else 2
    directory = Path(arguments[0])
    file = Path(arguments[1]) if arguments[1:] else directory / "consensus.weights.h5"
    try:
        content, steps = mean_model(directory)
        if file.exists():
            raise UsageError(f"{file} exists; name another file: {USAGE}")
        files.write(file, content)
    except UsageError as error:
        print(f"swarm-tf consensus: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"swarm-tf consensus: {file} cannot be written ({files.reason(error)})")
        return 2
    taken = ", ".join(f"rank {rank} at step {step}" for rank, step in steps.items())
    print(f"{file}: the mean of {taken}")
    return 0


def mean_model(directory: Path) -> tuple[bytes, dict[int, int]]:
    """The content of the file, and the step of each rank's checkpoint.

    Raises:
      UsageError: there are no checkpoints that can be read.
    """
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    every = stages(directory)
    if not every:
        raise UsageError(f"{directory} has no checkpoints")
    stage = every[-1]
    try:
        known = layout_path(directory, stage).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{directory / stage.name} does not say how Keras saves the model "
            f"({files.reason(error)}); rank 0 writes that beside its first checkpoint, unless "
            "layers of the model save something else than their variables"
        ) from None
    places = layout.places(known)
    sums: dict[int, npt.NDArray[Any]] = {}
    steps: dict[int, int] = {}
    first: list[npt.NDArray[Any]] = []
    for rank in ranks(directory, stage):
        found = _newest(Store(directory, stage, rank))
        if found is None:
            continue
        steps[rank], variables = found
        first = first or variables
        for place in places:
            if _is_float(variables[place]):
                sums[place] = sums.get(place, 0) + variables[place].astype(np.float64)
    if not steps:
        raise UsageError(f"{directory / stage.name} has no checkpoint that can be read")
    mean = {place: first[place] for place in places}  # what is no float is that of the first rank
    mean |= {place: (sums[place] / len(steps)).astype(first[place].dtype) for place in sums}
    return layout.filled(known, mean), steps


def _newest(store: Store) -> tuple[int, list[npt.NDArray[Any]]] | None:
    for step in store.steps():
        try:
            return step, store.read(step)["model"]["variables"]
        except DamagedError as error:
            print(f"swarm-tf consensus: {error}", file=sys.stderr)
    return None


def _is_float(values: npt.NDArray[Any]) -> bool:
    return values.dtype.kind == "f" or "float" in values.dtype.name
