"""What a specimen is, and the data on which most of them train."""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import swarm_tf
from zoo import pair

SPECIMENS: dict[str, Callable[[], None]] = {}
"""All specimens, by "file.function"."""

SLOW: set[str] = set()
"""Specimens of large families, which run when the code that they test changes."""


def specimen(function: Callable[[], None], *, slow: bool = False) -> Callable[[], None]:
    """Adds a function to the zoo."""
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    SPECIMENS[name] = function
    if slow:
        SLOW.add(name)
    return function


slow_specimen = functools.partial(specimen, slow=True)
"""A specimen of a large family of which `make test` runs another; `make slow` runs this one."""


def collect() -> dict[str, Callable[[], None]]:
    """All specimens, in the order of the files, and within a file in the order of its text."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith(("test_", "_")):
            importlib.import_module(f"zoo.{module.name}")
    return SPECIMENS


SHOWN: list[str] = []
"""What a specimen has verified so far. One that verifies nothing fails."""


@contextmanager
def refused(pattern: str) -> Iterator[None]:
    """The block must be refused on this rank, with one line that matches."""
    try:
        yield
    except swarm_tf.UsageError as error:
        text = str(error)
        assert "\n" not in text, f"the refusal has several lines: {text}"
        assert re.search(pattern, text), f"the refusal must match {pattern!r}, but is: {text}"
        SHOWN.append(pattern)
    else:
        raise AssertionError(f"was not refused with {pattern!r}")


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def logged(pattern: str) -> Iterator[None]:
    """During the block at least one rank must log a line that matches."""
    handler, log = _Lines(), logging.getLogger("swarm_tf")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
    every = [line for lines in pair.exchange(handler.lines, "the log lines") for line in lines]
    assert any(re.search(pattern, line) for line in every), f"{pattern!r} is not among {every}"


INPUTS, BATCH, BATCHES = 6, 8, 24


def numbers(rows: int = BATCHES * BATCH, inputs: int = INPUTS) -> tuple[np.ndarray, np.ndarray]:
    """This rank's part of the data: float32 [rows, inputs] and [rows, 1]."""
    rng = np.random.default_rng([7, swarm_tf.rank()])
    x = rng.normal(size=[rows, inputs]).astype(np.float32)
    return x, (x.sum(axis=1, keepdims=True) + swarm_tf.rank()).astype(np.float32)


def words(rows: int = BATCHES * BATCH, length: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """This rank's part of the data: int32 [rows, length] below 20 and float32 [rows, 1]."""
    rng = np.random.default_rng([8, swarm_tf.rank()])
    x = rng.integers(0, 20, [rows, length]).astype(np.int32)
    return x, (x % 3 == 0).sum(axis=1, keepdims=True).astype(np.float32)
