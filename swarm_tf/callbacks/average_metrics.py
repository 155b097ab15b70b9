"""AverageMetrics: the mean metrics of all ranks, so that callbacks decide alike on each."""

from __future__ import annotations

import logging
import math
from typing import Any

import keras

from swarm_tf.algorithm import Algorithm
from swarm_tf.cluster import world
from swarm_tf.errors import UsageError
from swarm_tf.options import POSITIVE, checked
from swarm_tf.training_loop import callback_list
from swarm_tf.transport.base import Transport

_log = logging.getLogger("swarm_tf")

_DECIDERS = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.ModelCheckpoint,
)


class AverageMetrics(keras.callbacks.Callback):  # type: ignore[misc]
    """Gives every rank the mean metrics of all ranks, so that callbacks decide alike on each.

    At the end of each epoch every metric in the logs becomes its mean over ranks. A rank counts by
    the examples that it has seen (in training and validation separately; by sample weights, if
    there are any; by batches, if the model has no loss of Keras'). A metric that only some ranks
    have, such as one that validates alone, is given to all. Values that are not finite are left
    out, unless all are.

    Put it before the callbacks that decide (EarlyStopping, ReduceLROnPlateau, ModelCheckpoint with
    save_best_only) and before the swarm's own:

    ```python
    callbacks = [AverageMetrics(), EarlyStopping(patience=3), SwarmCallback()]
    ```

    All ranks take part once per epoch: there a swarm waits for its slowest rank. A rank whose
    training ends before that of the others is left out from then on.

    Args:
      timeout_seconds: longest wait for the slowest rank at the end of an epoch.
      transport: other than MPI; for tests.
    """

    def __init__(
        self, timeout_seconds: float = world.FIRST_SECONDS, *, transport: Transport | None = None
    ) -> None:
        super().__init__()
        key = "AverageMetrics.timeout_seconds"
        self.timeout_seconds = checked(key, timeout_seconds, float, POSITIVE)
        self.transport = transport or world.transport()
        self._batches = {"train": 0, "test": 0}
        self._examples: dict[str, float] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check its place among the callbacks."""
        among = callback_list()
        if self.transport is None or among is None or self not in among.callbacks:
            return
        before = among.callbacks[: among.callbacks.index(self)]
        for other in before:
            if isinstance(other, Algorithm):
                raise UsageError(
                    f"AverageMetrics stands after {type(other).__name__} in the callbacks, where a "
                    "rank that has ended would wait for ranks that still average; put it before"
                )
            if isinstance(other, _DECIDERS) and world.rank() == 0:
                _log.warning(
                    "AverageMetrics stands after %s, which decides by this rank's own metrics; "
                    "put it before",
                    type(other).__name__,
                )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reset the counts."""
        self._batches = {"train": 0, "test": 0}
        self._examples = {}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count batches, for models without a loss of Keras'."""
        self._batches["train"] += 1

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count batches, for models without a loss of Keras'."""
        self._batches["test"] += 1

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Read the training count, before the metrics count validation."""
        self._examples.setdefault("train", self._seen("train"))

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Read the validation count."""
        self._examples["test"] = self._seen("test")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Replace the logs by their means."""
        if self.transport is None or logs is None:
            return
        self._examples.setdefault("train", self._seen("train"))
        mine = {
            name: [float(value), self._examples.get(_kind(name), 0.0)]
            for name, value in logs.items()
            if isinstance(value, int | float) or getattr(value, "shape", None) == ()
        }
        logs.update(_means(self._gather(mine)))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Take part until all ranks have ended: those that train on still average."""
        while self.transport is not None and any(one is not None for one in self._gather(None)):
            pass

    def _gather(self, mine: dict[str, list[float]] | None) -> list[dict[str, list[float]] | None]:
        what = "the metrics of an epoch"
        return world.gather_over(self.transport, mine, what, self.timeout_seconds)

    def _seen(self, kind: str) -> float:
        """Examples that the metrics of Keras have counted, or batches."""
        counted = getattr(getattr(self.model, "_loss_tracker", None), "count", None)
        examples = 0.0 if counted is None else float(counted.value)
        return examples or float(self._batches[kind])


def _kind(name: str) -> str:
    return "test" if name.startswith("val_") else "train"


def _means(every: list[dict[str, list[float]] | None]) -> dict[str, float]:
    """The weighted mean of each metric over the ranks that have it."""
    present = [one for one in every if one is not None]
    means = {}
    for name in {name: None for one in present for name in one}:
        values = [one[name] for one in present if name in one]
        values = [v for v in values if math.isfinite(v[0])] or values
        total = sum(weight for _, weight in values)
        if total > 0:
            means[name] = sum(value * weight for value, weight in values) / total
        else:
            means[name] = sum(value for value, _ in values) / len(values)
    return means
