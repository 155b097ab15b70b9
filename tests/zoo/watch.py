"""Watched algorithms: their results are compared between ranks and with NumPy.

Of every training, unless a specimen says otherwise:

    it averages        the ranks have exchanged something
    starts equal       every variable but the states of seed generators, weights and optimizers',
                       was the same on both ranks, in its own type, once they had joined
    ends equal         all weights are the same bits on both ranks
    the right mean     they are NumPy's mean of what the ranks held before the last averaging
    finite             all of them
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import ml_dtypes
import numpy as np

import swarm_tf
from zoo import pair, specimens


@dataclass
class Training:
    """What was recorded of one training."""

    model: keras.Model
    slots: bool  # whether they are averaged too
    at_start: list[str] = field(default_factory=list)
    before: list[np.ndarray] = field(default_factory=list)
    exchanges: int = 0
    ended: bool = False

    def starts(self) -> None:
        self.at_start = described([*self.model.weights, *optimizer_variables(self.model)])

    def look(self) -> None:
        """Keeps the weights of which the last mean is taken."""
        self.before = [wide(v) for v in self.averaged()]

    def averaged(self) -> list[keras.Variable]:
        """The float weights, frozen ones too: equal on all ranks, they equal their mean."""
        variables = list(self.model.weights)
        if self.slots:
            variables += optimizer_slots(self.model)
        return [v for v in variables if is_float(v)]


TRAININGS: list[Training] = []
"""Trainings that are not yet checked."""


class _Watched:
    """A mixin before an `Algorithm` that watches it through its public hooks."""

    training: Training | None = None

    def begin(self, common: dict[str, Any]) -> None:
        self.training = Training(self.model, self.settings["average_optimizer"])
        self.training.starts()
        TRAININGS.append(self.training)
        super().begin(common)

    def end(self, step: int) -> None:
        super().end(step)
        self.training.look()
        counters = self.counters
        self.training.exchanges = counters.exchanges + counters.exchanges_served
        self.training.ended = True


@functools.cache
def watched(algorithm: type) -> type:
    """A subclass that is watched."""
    return type(algorithm.__name__, (_Watched, algorithm), {})


def swarm(*arguments: Any, **options: Any) -> swarm_tf.SwarmCallback:
    """A watched SwarmCallback."""
    return watched(swarm_tf.SwarmCallback)(*arguments, **options)


class LastLook(keras.callbacks.Callback):
    """Comes after callbacks that change the weights at the end of a training, and looks again."""

    def __init__(self, watching: Any) -> None:
        super().__init__()
        self.watching = watching

    def on_train_end(self, logs: Any = None) -> None:
        self.watching.training.look()


@contextmanager
def failing(kind: type[BaseException], text: str = "") -> Iterator[None]:
    """The training in the block must end by such an error, and is not checked."""
    try:
        yield
    except kind as error:
        if text not in str(error):
            raise
        specimens.SHOWN.append(text)
        TRAININGS[:] = [training for training in TRAININGS if training.ended]
    else:
        raise AssertionError(f"no {kind.__name__} came out of the training")


def check(*, equal: bool = True, averages: bool = True, goes_on: bool = False) -> None:
    """Checks all trainings since the last check.

    A training that goes on from an earlier one of the same, unchanged model starts with equal
    weights, but each rank keeps its optimizer's slots.

    Args:
      goes_on: the first training goes on from one that was checked before.
      equal: the last training of each model ends equal on both ranks, at the right mean.
      averages: the ranks have exchanged something.
    """
    last = {id(training.model): training for training in TRAININGS}
    mine: list[dict[str, Any]] = []
    known: set[int] = set()
    for training in TRAININGS:
        local_slots = id(training.model) in known or (goes_on and not mine)
        known.add(id(training.model))
        now = training if equal and last[id(training.model)] is training else None
        mine.append(
            {
                "start": training.at_start[: len(training.model.weights) if local_slots else None],
                "exchanges": training.exchanges,
                "ended": training.ended,
                "before": training.before,
                "after": [wide(v) for v in now.averaged()] if now else [],
                "types": [str(v.dtype) for v in now.averaged()] if now else [],
                "paths": [v.path for v in now.averaged()] if now else [],
                "end": described(training.model.weights) if now else [],
            }
        )
    TRAININGS.clear()
    every = pair.exchange(mine, "the check of their trainings")
    counts = [len(one) for one in every]
    assert len(set(counts)) == 1, f"rank 0 joined {counts[0]} trainings, rank 1 {counts[1]}"
    assert counts[0], "the ranks have joined no training"
    specimens.SHOWN.append("trainings")
    for number, (zero, one) in enumerate(zip(*every, strict=True)):
        _check_training(f"training {number}: ", zero, one, averages)


def _check_training(what: str, zero: Any, one: Any, averages: bool) -> None:
    assert zero["ended"], f"{what}has not ended on rank 0"
    assert one["ended"], f"{what}has not ended on rank 1"
    exchanges = zero["exchanges"] + one["exchanges"]
    assert not averages or exchanges > 0, f"{what}no exchange"
    assert_same(f"{what}starts differently", zero["start"], one["start"])
    if not zero["end"]:
        return
    of = zip(
        zero["paths"], zero["types"], zero["before"], one["before"], zero["after"], strict=True
    )
    for path, dtype, a, b, after in of:
        assert np.isfinite(after).all(), f"{what}{path} is not finite at the end"
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            continue  # a rank that is not finite is left out of the mean
        allowed = 2 * float(ml_dtypes.finfo(dtype).eps) * np.maximum(np.abs(a), np.abs(b)) + 1e-30
        off = np.abs(after - (a + b) / 2) - allowed
        assert (off <= 0).all(), f"{what}{path} is not the mean: {off.max():g} off"
    assert_same(f"{what}ends differently", zero["end"], one["end"])


def assert_same(what: str, zero: list[str], one: list[str]) -> None:
    """Asserts equal variables on both ranks; their paths may differ."""
    assert len(zero) == len(one), f"{what}: {len(zero)} and {len(one)} variables"
    differ = [a for a, b in zip(zero, one, strict=True) if a.split("|")[1:] != b.split("|")[1:]]
    count = f"{len(differ)} of {len(zero)} variables"
    assert not differ, f"{what}: {count}, such as {', '.join(d.split('|')[0] for d in differ[:4])}"


def assert_equal_on_ranks(value: Any, what: str) -> None:
    """Asserts that a value is the same on both ranks, bit for bit."""
    zero, one = pair.exchange(np.asarray(value).tobytes(), what)
    assert zero == one, f"{what} differs between the ranks"


def described(variables: list[keras.Variable]) -> list[str]:
    """path|type|shape|digest of each variable."""
    found = []
    for v in variables:
        value = np.asarray(keras.ops.convert_to_numpy(v.value))
        digest = hashlib.blake2b(value.tobytes(), digest_size=8).hexdigest()
        found.append(f"{v.path}|{v.dtype}|{tuple(v.shape)}|{digest}")
    return found


def wide(variable: keras.Variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable.value)).astype(np.float64)


def is_float(variable: keras.Variable) -> bool:
    return "float" in str(variable.dtype)


def optimizers(model: keras.Model) -> Iterator[keras.Optimizer]:
    """The optimizers in attributes of the model, or in lists or dictionaries in them."""
    seen = []
    for value in list(vars(model).values()):
        values = value.values() if isinstance(value, dict) else value
        for one in values if isinstance(value, list | tuple | dict) else [value]:
            if isinstance(one, keras.Optimizer) and not any(one is other for other in seen):
                seen.append(one)
                yield one


def optimizer_variables(model: keras.Model) -> list[keras.Variable]:
    return list({id(v): v for one in optimizers(model) for v in one.variables}.values())


def optimizer_slots(model: keras.Model) -> list[keras.Variable]:
    """What optimizers keep for each weight, without gradients that are not yet applied."""
    waiting = set()
    for one in optimizers(model):
        inner = getattr(one, "inner_optimizer", one)
        waiting |= {id(v) for v in getattr(inner, "_accumulated_gradients", None) or []}
    slots = [v for v in optimizer_variables(model) if len(v.shape) and is_float(v)]
    return [v for v in slots if id(v) not in waiting]
