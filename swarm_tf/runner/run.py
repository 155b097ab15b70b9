"""A run of `train.py`: training, evaluation and the files that it writes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swarm_tf import consensus
from swarm_tf.cluster import signals, world
from swarm_tf.config import RunConfig, to_dict
from swarm_tf.events import Counters, merge
from swarm_tf.runner import algorithms, evaluation
from swarm_tf.runner.metrics import MetricsWriter
from swarm_tf.runner.progress import Progress, Status
from swarm_tf.runner.slowdown import Slowdown
from swarm_tf.runner.summary import Summary
from swarm_tf.state import moving_statistics
from swarm_tf.trainer import Trainer
from swarm_tf.weights import FlatWeights

_RECALIBRATION_BATCHES = 32


class Run:
    """Trains `model` with the algorithm of `config` and writes the files of the run.

    Args:
      config: validated.
      workdir: the directory into which rank 0 writes.
      model: compiled.
      train, test: data sets of batches; `train` repeats without end.
      examples: number of training examples of all ranks together.
      steps: local steps of this rank.
      steps_per_pass: local steps per rank in one pass of all ranks together over the training set.
      score: returns further scores of the mean model, by name; called on all ranks.
      files: contents of other files that are needed to use the model, by name in `workdir`.

    Raises:
      UsageError: on rank 0, if `workdir` cannot be written.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: str,
        model: keras.Model,
        *,
        train: tf.data.Dataset,
        test: tf.data.Dataset,
        examples: int,
        steps: int,
        steps_per_pass: float,
        score: Callable[[], dict[str, Any]] = dict,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        self.config, self.workdir, self.model = config, Path(workdir), model
        self.train_data, self.test_data = train, test
        self.steps, self.steps_per_pass, self.examples = steps, steps_per_pass, examples
        self.score, self.files = score, files
        self.trainer = Trainer(
            model, jit_compile=config.train.jit_compile, longest_block=config.train.log_every
        )
        self.algorithm = algorithms.build(config, steps)
        self._writer = MetricsWriter(self.workdir, world.rank())

    def __call__(self) -> Summary:
        """Train, evaluate and write the files; after a signal, write them without an evaluation."""
        began = time.monotonic()
        with self._writer as writer:
            world.run_on_all_ranks(lambda: self._write_inputs(writer))
            log = _Log(self, Progress() if world.rank() == 0 else None)
            with signals.listening():
                self.trainer.fit(
                    self.train_data,
                    steps=self.steps,
                    steps_per_epoch=math.ceil(self.steps_per_pass),
                    callbacks=self._callbacks(log),
                )
                distance, own = self._take_mean()
                ended_by = self._ended_by()
                summary = self._summarize(began, {} if ended_by else own, ended_by, distance)
                # A signal that arrives from here on only prevents the scores of the mean model.
                writer.summary(summary)
                world.gather(None, "the files of rank 0")
                if not ended_by:
                    self.log(self.steps, **_prefixed("test", own))
                    final = self._final(own)
                    if received := signals.received():
                        final, ended_by = {}, received.name
                    summary = dataclasses.replace(summary, final=final, ended_by=ended_by)
                    numbers = {k: v for k, v in final.items() if not isinstance(v, str)}
                    self.log(self.steps, **_prefixed("consensus", numbers))
                    writer.summary(summary)
        return summary

    def _write_inputs(self, writer: MetricsWriter) -> None:
        """Before training, write the configuration and the other files that the model needs."""
        writer.config(to_dict(self.config))
        for name, content in self.files.items():
            writer.file(name, content)

    def _callbacks(self, log: _Log) -> list[keras.callbacks.Callback]:
        """The algorithm comes before the log, because the log may take long to evaluate."""
        callbacks: list[keras.callbacks.Callback] = [self.algorithm]
        train = self.config.train
        if train.slow_factors or train.step_seconds:
            factor = train.slow_factors[world.rank()] if train.slow_factors else 1.0
            callbacks.append(Slowdown(factor, train.step_seconds))
        return [*callbacks, log]

    def passes(self, step: float) -> float:
        """Passes of all ranks together over the training set until local step `step`."""
        return step / self.steps_per_pass

    def log(self, step: int, **values: float) -> None:
        """Write a line to metrics.jsonl, with rank 0's training time and bytes sent so far."""
        self._writer.log(
            step,
            epoch=self.passes(step),
            train_seconds=self.trainer.train_seconds,
            bytes_sent=self.counters.bytes_sent,
            **values,
        )

    @property
    def counters(self) -> Counters:
        """The counters of this rank."""
        return self.algorithm.counters

    def _ended_by(self) -> str | None:
        """The name of the signal that ended the training of any rank, on all ranks; or None."""
        received = signals.received()
        names = world.gather(
            received.name if received else None,
            "the evaluation of all ranks' models",
            world.FIRST_SECONDS,
        )
        return next(filter(None, names), None)

    def _summarize(
        self, began: float, own: dict[str, float], ended_by: str | None, distance: float
    ) -> Summary:
        """The summary of all ranks, without the final scores."""
        ranks = world.gather(
            {
                "steps": int(self.model.optimizer.iterations.numpy()),
                "accuracy": own.get("accuracy", float("nan")),
                "train_seconds": self.trainer.train_seconds,
                "data_wait": self.trainer.wait_seconds / max(self.trainer.train_seconds, 1e-9),
                "step_seconds": self.trainer.step_seconds_median,
                "counters": dataclasses.asdict(self.counters),
            },
            "the summary",
        )
        total = merge(Counters(**rank["counters"]) for rank in ranks)
        train_seconds = float(np.mean([rank["train_seconds"] for rank in ranks]))
        rates = [rank["steps"] / max(rank["train_seconds"], 1e-9) for rank in ranks]
        steps = sum(rank["steps"] for rank in ranks)
        exposed = total.exposed_seconds / len(ranks)
        return Summary(
            algorithm=self.config.algorithm,
            ranks=len(ranks),
            survivors=len(ranks),
            parameters=int(self.model.count_params()),
            local_steps_total=steps,
            epochs=self.passes(steps / len(ranks)),
            ended_by=ended_by,
            wall_seconds=time.monotonic() - began,
            train_seconds=train_seconds,
            examples_per_second=float(np.mean(rates)) / self.steps_per_pass * self.examples,
            final={},
            per_rank_accuracy={
                "min": min(rank["accuracy"] for rank in ranks),
                "max": max(rank["accuracy"] for rank in ranks),
            },
            exchanges=total.exchanges,
            exchanges_failed=total.exchanges_failed,
            bytes_sent=total.bytes_sent,
            payload_bytes_per_exchange=total.payload_bytes_per_exchange,
            blocks_skipped=total.blocks_skipped,
            exposed_seconds=exposed,
            exposed_fraction=exposed / max(train_seconds, 1e-9),
            data_wait_fraction=float(np.mean([rank["data_wait"] for rank in ranks])),
            step_seconds_median=float(np.median([rank["step_seconds"] for rank in ranks])),
            steps_per_second={
                "min": min(rates),
                "mean": float(np.mean(rates)),
                "max": max(rates),
            },
            staleness_mean=total.staleness_mean,
            consensus_distance=distance,
        )

    def _final(self, own: dict[str, float]) -> dict[str, Any]:
        """The metrics and scores of the mean model; on one rank, those (`own`) of its model."""
        score = self.score()
        if world.rank() == 0 and world.size() > 1:
            own = evaluation.evaluate(self.model, self.test_data)
        return {**own, **score}

    def _take_mean(self) -> tuple[float, dict[str, float]]:
        """Assign the mean model on every rank; rank 0 writes it.

        Returns:
          The consensus distance before the assignment, and the metrics of this rank's own model.
        """
        weights = self.model.weights
        own = [np.array(v) for v in weights]
        distance = self._average()
        self._writer.weights(self.model)  # first, since evaluation may fail or take long
        mean = [np.array(v) for v in weights]
        _assign(weights, own)
        tested = evaluation.evaluate(self.model, self.test_data)
        _assign(weights, mean)
        return distance, tested

    def _average(self) -> float:
        """Assign the mean of all ranks' models; returns the consensus distance before that."""
        algorithm = self.algorithm
        if algorithm.weights is None:
            return 0.0
        assert algorithm.transport is not None
        mean = consensus.mean(algorithm.weights, algorithm.transport)
        distance = consensus.distance(algorithm.weights, algorithm.transport, mean)
        algorithm.weights.assign(mean)
        if self.config.train.recalibrate or not self.config.swarm.average_statistics:
            evaluation.recalibrate(self.model, self.train_data.take(_RECALIBRATION_BATCHES))
            # Each rank used its own part of the data.
            statistics = FlatWeights(moving_statistics(self.model))
            statistics.assign(consensus.mean(statistics, algorithm.transport))
        return distance


class _Log(keras.callbacks.Callback):  # type: ignore[misc]
    """Evaluates the rank's own model at intervals; on rank 0 writes metrics.jsonl and progress."""

    def __init__(self, run: Run, progress: Progress | None) -> None:
        super().__init__()
        self._run, self._progress = run, progress
        self._accuracy: float | None = None
        self._next_log = self._last_evaluation = 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        step = self._run.trainer.steps_taken
        if self._progress and step >= self._next_log:
            self._next_log = step + self._run.config.train.log_every
            self._run.log(step, **logs or {})
            self._progress.update(self._status(step, logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        step = int(self.model.optimizer.iterations.numpy())
        if self._progress:
            self._run.log(step, **_prefixed("pass", logs or {}))
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
                self._run.log(step, **_prefixed("test", tested))
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


def _assign(variables: list[keras.Variable], values: list[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in values.items()}
