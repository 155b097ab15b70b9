"""A run of `train.py`: training, evaluation and the files that it writes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swarm_tf import consensus
from swarm_tf.checkpoint.agreement import Found
from swarm_tf.checkpoint.callback import Checkpoint
from swarm_tf.cluster import signals, world
from swarm_tf.config import RunConfig, to_dict
from swarm_tf.errors import UsageError
from swarm_tf.events import Counters, merge
from swarm_tf.runner import algorithms, evaluation
from swarm_tf.runner.metrics import CHECKPOINTS, MetricsWriter
from swarm_tf.runner.progress import Progress
from swarm_tf.runner.slowdown import Slowdown
from swarm_tf.runner.summary import Summary
from swarm_tf.runner.training_log import TrainingLog, prefixed
from swarm_tf.runner.validation import check_unchanged
from swarm_tf.state import moving_statistics
from swarm_tf.trainer import Trainer
from swarm_tf.weights import FlatWeights

_RECALIBRATION_BATCHES = 32


class Run:
    """Trains `model` with the algorithm of `config` and writes the files of the run.

    Args:
      config: validated.
      workdir: the directory into which rank 0 writes, and each rank its checkpoints.
      model: compiled.
      train_from: the training batches without end, from the batch of a number on, after stages on
        other numbers of ranks; see `data.Data`.
      test: batches of the test split.
      examples: number of training examples of all ranks together.
      steps: local steps of this rank.
      steps_per_pass: local steps per rank in one pass of all ranks together over the training set.
      score: returns further scores of the mean model, by name; called on all ranks.
      files: contents of other files that are needed to use the model, by name in `workdir`.
      resume: whether the run goes on from checkpoints in `workdir`: see `Checkpoint`.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: str,
        model: keras.Model,
        *,
        train_from: Callable[[int, Sequence[Sequence[int]]], tf.data.Dataset],
        test: tf.data.Dataset,
        examples: int,
        steps: int,
        steps_per_pass: float,
        score: Callable[[], dict[str, Any]] = dict,
        files: Mapping[str, bytes] = MappingProxyType({}),
        resume: str = "auto",
    ) -> None:
        self.config, self.workdir, self.model = config, Path(workdir), model
        self.train_from, self.test_data = train_from, test
        self.steps, self.steps_per_pass, self.examples = steps, steps_per_pass, examples
        self.score, self.files = score, files
        self.trainer = Trainer(
            model, jit_compile=config.train.jit_compile, longest_block=config.train.log_every
        )
        self.algorithm = algorithms.build(config, steps)
        self.resume = resume
        self._earlier = Counters()  # of the runs that this one goes on from
        self._stages: list[list[int]] = []  # earlier ones, for `train_from`
        self._stage_began_at = 0
        self._checkpoint: Checkpoint | None = None
        self._writer = MetricsWriter(self.workdir, rank=-1)  # until `__call__`

    def __call__(self) -> Summary:
        """Train, evaluate and write the files; after a signal, write them without an evaluation.

        Raises:
          UsageError: `workdir` cannot be written, or has checkpoints of another configuration.
        """
        log = TrainingLog(self, Progress() if world.rank() == 0 else None)
        first_step = self._prepare(log)
        data = self.train_from(first_step - self._stage_began_at, self._stages)
        with self._writer as writer:
            world.run_on_all_ranks(lambda: self._write_inputs(writer))
            with signals.listening():
                self.trainer.fit(
                    data,
                    steps=self.steps,
                    steps_per_epoch=math.ceil(self.steps_per_pass),
                    first_step=first_step,
                    callbacks=self._callbacks(log),
                )
                distance, own = self._take_mean()
                ended_by = self._ended_by()
                summary = self._summarize({} if ended_by else own, ended_by, distance)
                # A signal that arrives from here on only prevents the scores of the mean model.
                writer.summary(summary)
                world.gather(None, "the files of rank 0")
                if not ended_by:
                    self.log(self.steps, **prefixed("test", own))
                    final = self._final(own)
                    if received := signals.received():
                        final, ended_by = {}, received.name
                    summary = dataclasses.replace(summary, final=final, ended_by=ended_by)
                    numbers = {k: v for k, v in final.items() if not isinstance(v, str)}
                    self.log(self.steps, **prefixed("consensus", numbers))
                    writer.summary(summary)
        return summary

    def _prepare(self, log: TrainingLog) -> int:
        """Open the files; if there are checkpoints, those of the earlier run.

        Returns:
          the local step at which this run begins.
        """
        train = self.config.train
        saved: Mapping[str, Any] | None = None
        if train.checkpoint_every is not None or train.checkpoint_steps is not None:
            self._checkpoint = Checkpoint(
                self.workdir / CHECKPOINTS,
                train.checkpoint_every or 10.0,
                steps=train.checkpoint_steps,
                keep=train.checkpoint_keep,
                resume=self.resume,
                also=lambda: self._state(log),
            )
            if self._checkpoint.resume != "never":
                found = self._checkpoint.found()
                if found is not None:
                    saved = found.state["also"]
                    self._go_on(found)
        elif self.resume == "must":
            raise UsageError("--resume=must needs checkpoints, but train.checkpoint_every is None")
        if saved is not None:
            check_unchanged(self.config, saved["config"])
            log.restore(saved["log"])
            self._earlier = Counters(**{k: v.item() for k, v in saved["counters"].items()})
            self.trainer.train_seconds = saved["train_seconds"]
            self.trainer.wait_seconds = saved["wait_seconds"]
        self._writer = world.run_on_all_ranks(
            lambda: MetricsWriter(self.workdir, world.rank(), saved and saved["metrics"])
        )
        return 0 if self._checkpoint is None else self._checkpoint.first_step()

    def _go_on(self, found: Found) -> None:
        """Take up the stages of the run; with other ranks, what they have used is a stage more."""
        saved = found.state["also"]
        self._stages, self._stage_began_at = saved["stages"], saved["stage_began_at"]
        if found.other_ranks:
            steps = [found.steps.get(rank, found.mean_step) for rank in range(found.stage.ranks)]
            self._stages = [*self._stages, [step - self._stage_began_at for step in steps]]
            self._stage_began_at = found.step

    def _state(self, log: TrainingLog) -> dict[str, Any]:
        """What a checkpoint has of the run, besides the training's own state."""
        counters = dataclasses.asdict(self.counters)
        return {
            "config": to_dict(self.config),
            "log": log.state(),
            "stages": self._stages,
            "stage_began_at": self._stage_began_at,
            "metrics": self._writer.state(),
            # As arrays, so that a run on another number of ranks begins with their mean.
            "counters": {name: np.array(value) for name, value in counters.items()},
            "train_seconds": self.trainer.train_seconds,
            "wait_seconds": self.trainer.wait_seconds,
        }

    def _write_inputs(self, writer: MetricsWriter) -> None:
        """Before training, write the configuration and the other files that the model needs."""
        writer.config(to_dict(self.config))
        for name, content in self.files.items():
            writer.file(name, content)

    def _callbacks(self, log: TrainingLog) -> list[keras.callbacks.Callback]:
        """The algorithm comes before the log, because the log may take long to evaluate."""
        callbacks: list[keras.callbacks.Callback] = [self.algorithm]
        train = self.config.train
        if train.slow_factors or train.step_seconds:
            factor = train.slow_factors[world.rank()] if train.slow_factors else 1.0
            callbacks.append(Slowdown(factor, train.step_seconds))
        callbacks.append(log)
        return callbacks if self._checkpoint is None else [*callbacks, self._checkpoint]

    def passes(self, step: float) -> float:
        """Passes of all ranks together over the training set until local step `step`."""
        return step / self.steps_per_pass

    def log(self, step: int, **values: float) -> None:
        """Write a line to metrics.jsonl, with rank 0's training time and counters so far."""
        self._writer.log(
            step,
            epoch=self.passes(step),
            train_seconds=self.trainer.train_seconds,
            bytes_sent=self.counters.bytes_sent,
            exchanges=self.counters.exchanges,
            **values,
        )

    @property
    def counters(self) -> Counters:
        """The counters of this rank, with those of the runs that this one goes on from."""
        return self._earlier + self.algorithm.counters

    def _ended_by(self) -> str | None:
        """The name of the signal that ended the training of any rank, on all ranks; or None."""
        received = signals.received()
        names = world.gather(
            received.name if received else None,
            "the evaluation of all ranks' models",
            world.FIRST_SECONDS,
        )
        return next(filter(None, names), None)

    def _summarize(self, own: dict[str, float], ended_by: str | None, distance: float) -> Summary:
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
            wall_seconds=self._writer.state()["seconds"],
            train_seconds=train_seconds,
            examples_per_second=float(np.mean(rates)) / self.steps_per_pass * self.examples,
            final={},
            per_rank_accuracy={
                "min": min(rank["accuracy"] for rank in ranks),
                "max": max(rank["accuracy"] for rank in ranks),
            },
            exchanges=total.exchanges,
            exchanges_failed=total.exchanges_failed,
            steps_per_exchange=steps / total.exchanges if total.exchanges else math.nan,
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
            evaluation.recalibrate(self.model, self.train_from(0, ()).take(_RECALIBRATION_BATCHES))
            # Each rank used its own part of the data.
            statistics = FlatWeights(moving_statistics(self.model))
            statistics.assign(consensus.mean(statistics, algorithm.transport))
        return distance


def _assign(variables: list[keras.Variable], values: list[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
