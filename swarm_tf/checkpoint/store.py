"""The files of checkpoints: one for each rank and step, whole or not there at all.

    DIRECTORY/stage-001-of-4-ranks/rank-00003/step-000001200-DIGEST.npz

A stage is the part of a run that has one number of ranks; a run that is resumed on another number
begins a new stage. A file is NumPy's .npz: an array for each array of the state, and `facts`, all
else of the state as JSON. DIGEST is the BLAKE2b hash of the file, 128 bits in hexadecimal: a file
that was cut short or changed does not have its name any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from swarm_tf import files

State = Mapping[str, Any]
"""What a checkpoint holds: nested dicts and lists of JSON values and NumPy arrays."""

_STAGE = re.compile(r"stage-(\d+)-of-(\d+)-ranks")
_RANK = re.compile(r"rank-(\d+)")
_STEP = re.compile(r"step-(\d+)-([0-9a-f]{32})\.npz")
_FACTS = "facts"
_ARRAY = "array"  # the key of a place in the facts where an array stood


class DamagedError(Exception):
    """A file is not what was written."""


@dataclass(frozen=True, order=True)
class Stage:
    """A part of a run with one number of ranks; numbers count from 1."""

    number: int
    ranks: int

    @property
    def name(self) -> str:
        """Of the directory."""
        return f"stage-{self.number:03d}-of-{self.ranks}-ranks"


def stages(directory: Path) -> list[Stage]:
    """The stages that have a file of any rank, in ascending order."""
    found = (_STAGE.fullmatch(path.name) for path in _children(directory))
    every = sorted(Stage(int(match[1]), int(match[2])) for match in found if match)
    return [stage for stage in every if ranks(directory, stage)]


def ranks(directory: Path, stage: Stage) -> list[int]:
    """The ranks that have a file in this stage, in ascending order."""
    found = (_RANK.fullmatch(path.name) for path in _children(directory / stage.name))
    every = sorted(int(match[1]) for match in found if match)
    return [rank for rank in every if Store(directory, stage, rank).steps()]


def layout_path(directory: Path, stage: Stage) -> Path:
    """The file that says how Keras saves the model; see `layout`."""
    return directory / stage.name / "layout.h5"


def remove_other_stages(directory: Path, current: Stage) -> None:
    """Remove all stages but one; what cannot be removed stays."""
    for path in _children(directory):
        if _STAGE.fullmatch(path.name) and path.name != current.name:
            shutil.rmtree(path, ignore_errors=True)


class Store:
    """The checkpoints of one rank in one stage.

    Args:
      directory: of the run's checkpoints; created at the first `write`.
      keep: files that are kept; `write` removes older ones, and those of later steps: a training
        that takes a step again has gone back, since some of them could not be read.
    """

    def __init__(self, directory: Path, stage: Stage, rank: int, keep: int = 2) -> None:
        self.path = Path(directory) / stage.name / f"rank-{rank:05d}"
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that have a file, the latest first."""
        return sorted({step for step, _ in self._files()}, reverse=True)

    def write(self, step: int, state: State) -> Path:
        """Write a checkpoint; when this returns it is on disk.

        Raises:
          OSError: it cannot be written; earlier files stay, and no part of this one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        temporary = self.path / f".step-{step:09d}.tmp"
        try:
            with open(temporary, "w+b") as file:
                _save(file, state)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                path = self.path / f"step-{step:09d}-{_digest(file)}.npz"
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        files.sync_directory(self.path)
        self._remove_others(step, path)
        return path

    def read(self, step: int) -> dict[str, Any]:
        """The state at a step.

        Raises:
          DamagedError: there is no file of this step that is as it was written; says why.
        """
        reasons = []
        for found, path in self._files():
            if found != step:
                continue
            try:
                return _read(path)
            except DamagedError as error:
                reasons.append(str(error))
        raise DamagedError("; ".join(reasons) or f"{self.path} has no file of step {step}")

    def _files(self) -> list[tuple[int, Path]]:
        found = ((_STEP.fullmatch(path.name), path) for path in _children(self.path))
        return [(int(match[1]), path) for match, path in found if match]

    def _remove_others(self, step: int, newest: Path) -> None:
        """Remove what is too old, and what a training that has gone back replaces."""
        earlier = [other for other in self.steps() if other < step]
        kept = earlier[: self.keep - 1]
        for other, path in self._files():
            if other not in kept and path != newest:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _remove_unfinished(self) -> None:
        for path in self.path.glob(".step-*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:  # not there, or not a directory
        return []


def _save(file: Any, state: State) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {}
    facts = json.dumps(_without_arrays(state, arrays)).encode()
    members: dict[str, Any] = {_FACTS: np.frombuffer(facts, np.uint8), **arrays}
    np.savez(file, **members)


def _without_arrays(value: Any, arrays: dict[str, npt.NDArray[Any]]) -> Any:
    """`value` as JSON values; its arrays are moved to `arrays`."""
    if isinstance(value, Mapping):
        return {key: _without_arrays(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, arrays) for item in value]
    if not isinstance(value, np.ndarray):
        return value.item() if isinstance(value, np.generic) else value
    name, dtype = f"{_ARRAY}{len(arrays)}", value.dtype
    # NumPy's format does not know the types of ml_dtypes, such as bfloat16.
    arrays[name] = value if dtype.isbuiltin == 1 else value.view(f"u{dtype.itemsize}")
    return {_ARRAY: name, "dtype": dtype.name}


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            digest = _digest(file)
            if digest not in path.name:
                raise DamagedError(f"{path} is damaged: its content has another digest")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                facts = json.loads(arrays[_FACTS].tobytes())
                state: dict[str, Any] = _with_arrays(facts, arrays)
                return state
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error


def _with_arrays(value: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return [_with_arrays(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_ARRAY, "dtype"}:
        return arrays[value[_ARRAY]].view(dtype_of(value["dtype"]))
    return {key: _with_arrays(item, arrays) for key, item in value.items()}


def dtype_of(name: str) -> np.dtype[Any]:
    """The type with a name, also of ml_dtypes, such as bfloat16."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))


def _digest(file: Any) -> str:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
