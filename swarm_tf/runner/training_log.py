"""What a run of train.py logs while it trains: evaluations, metrics.jsonl, progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras

from swarm_tf.cluster import world
from swarm_tf.runner import evaluation
from swarm_tf.runner.progress import Progress, Status

if TYPE_CHECKING:
    from swarm_tf.runner.run import Run


class TrainingLog(keras.callbacks.Callback):  # type: ignore[misc]
    """Evaluates the rank's own model at intervals; on rank 0 writes metrics.jsonl and progress."""

    def __init__(self, run: Run, progress: Progress | None) -> None:
        super().__init__()
        self._run, self._progress = run, progress
        self._accuracy: float | None = None
        self._next_log = self._last_evaluation = 0.0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"next_log": self._next_log, "last_evaluation": self._last_evaluation}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""
        self._next_log, self._last_evaluation = saved["next_log"], saved["last_evaluation"]

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        step = self._run.trainer.steps_taken
        if self._progress and step >= self._next_log:
            self._next_log = step + self._run.config.train.log_every
            self._run.log(step, **logs or {})
            self._progress.update(self._status(step, logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        step = int(self.model.optimizer.iterations.numpy())
        if self._progress:
            self._run.log(step, **prefixed("pass", logs or {}))
        due = epoch + 1 >= self._last_evaluation + self._run.config.train.evaluate_every
        # The run evaluates the model again at its end.
        ends = step >= self._run.steps or self.model.stop_training
        if due and not ends:
            self._last_evaluation = epoch + 1
            synchronous = self._run.algorithm.synchronous
            # In a swarm all ranks evaluate: a single one would fall behind the others.
            if self._progress or not synchronous:
                tested = evaluation.evaluate(self.model, self._run.test_data)
                self._accuracy = tested.get("accuracy")
                self._run.log(step, **prefixed("test", tested))
            if synchronous:  # the others wait here, so that `exposed` does not count this time
                world.gather(None, "the evaluation of rank 0", world.FIRST_SECONDS)
        if self._progress:
            self._progress.end_epoch(self._status(step, logs))

    def _status(self, step: int, logs: dict[str, float] | None) -> Status:
        run, counters = self._run, self._run.counters
        return Status(
            epoch=run.passes(step),
            epochs=run.passes(run.steps),
            loss=(logs or {}).get("loss", float("nan")),
            accuracy=self._accuracy,
            exchanges=counters.exchanges + counters.exchanges_served,
            bytes_sent=counters.bytes_sent,
            exposed_fraction=counters.exposed_seconds / max(run.trainer.train_seconds, 1e-9),
        )


def prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    """`values` with "PREFIX_" before each name."""
    return {f"{prefix}_{name}": value for name, value in values.items()}
