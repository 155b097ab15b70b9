"""Checkpoint: saves every rank's training in the background, and goes on from what was saved."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swarm_tf import files, state
from swarm_tf.algorithm import Algorithm, algorithm_beside
from swarm_tf.checkpoint import agreement, model_state
from swarm_tf.checkpoint.store import Stage, stages
from swarm_tf.checkpoint.writer import Writer
from swarm_tf.cluster import environment, world
from swarm_tf.errors import UsageError
from swarm_tf.options import POSITIVE, at_least, checked, one_of
from swarm_tf.training_loop import set_epoch_length
from swarm_tf.transport.base import Transport

_log = logging.getLogger("swarm_tf")


class Checkpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Saves every rank's training in the background, and goes on from what was saved.

    Each rank copies its state at a boundary of its own and trains on, while a thread writes the
    copy: model, optimizer, random states, the algorithm's state, the position in the data. When the
    same program is started again it goes on from there: on as many ranks each with its own state,
    on another number all with the mean of the models. A signal, or the end of training, saves too.

    ```python
    checkpoint = swarm_tf.Checkpoint("checkpoints")
    callbacks = [swarm_tf.SwarmCallback(), checkpoint]
    model.fit(checkpoint.rest_of(data), epochs=90, callbacks=callbacks)
    ```

    Every rank needs it, beside the algorithm in the list of callbacks. Callbacks that follow it see
    the last step before a signal saves it.

    Args:
      directory: of the files; the same on all ranks, best on a file system that all see.
      every: minutes between two checkpoints.
      steps: local steps between two; None: as `every` says.
      keep: checkpoints that each rank keeps.
      resume: "auto": go on if there are checkpoints; "must": refuse to begin anew; "never": begin
        anew, and rename the directory if it has checkpoints. But if Slurm or swarmrun has started
        this very job again, "never" is "auto".
      also: returns what else to save, JSON values and NumPy arrays; see `found`.

    Raises:
      UsageError: a value breaks its rule; in training, also if a checkpoint is of another model or
        algorithm, or the algorithm is missing.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: float = 10.0,
        *,
        steps: int | None = None,
        keep: int = 2,
        resume: str = "auto",
        also: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        super().__init__()
        self.directory = Path(directory)
        self.every = checked("Checkpoint.every", every, float, POSITIVE)
        self.steps = checked("Checkpoint.steps", steps, int | None, at_least(1))
        self.keep = checked("Checkpoint.keep", keep, int, at_least(1))
        allowed = one_of(("auto", "must", "never"))
        self.resume = checked("Checkpoint.resume", resume, str, allowed)
        if resume == "never" and environment.is_restart():
            self.resume = "auto"
        self._also = also
        self._found: agreement.Found | None = None
        self._loaded = self._resumed = False
        self._began = self._first_pass_begun = False
        self._late: Mapping[str, Any] | None = None  # what is restored before the first step
        self._algorithm: Algorithm | None = None
        self._stage: Stage | None = None
        self._writer: Writer | None = None
        self._epoch = self._epoch_began_at = 0
        self._lengths: tuple[int, int] | None = None  # batches of the first epoch, and of others
        self._continues = False  # whether the data go on within the interrupted epoch
        self._saved_step, self._saved_at = -1, 0.0

    # What was saved.

    def found(self) -> agreement.Found | None:
        """The checkpoint that training goes on from; None if it begins anew.

        All ranks must call it: they read their files, and agree on them, at the first call. Its
        `state["also"]` is what `also` returned.
        """
        return self._load(world.transport())

    def rest_of(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """`dataset`, without the batches that were trained on, in its first pass.

        A dataset without end leaves out all batches so far, any other those of the epoch that was
        interrupted. They are read and dropped. All ranks must call it before the training.
        """
        length = int(dataset.cardinality())
        endless = length == tf.data.INFINITE_CARDINALITY
        found = self.found()
        if found is None:
            return dataset
        self._continues = True
        batches = found.step if endless else _batches(found)

        def skipped() -> np.int64:
            """Called when a pass begins; `model.fit` may begin one more before the training."""
            before, self._first_pass_begun = self._first_pass_begun, self._began
            return np.int64(0 if before else batches)

        rest = tf.data.Dataset.range(1).flat_map(
            lambda _: dataset.skip(tf.numpy_function(skipped, [], tf.int64))
        )
        rest.cardinality = lambda: tf.constant(length, tf.int64)
        if length > batches and not endless:
            self._lengths = length - batches, length
        return rest

    def first_step(self) -> int:
        """Local steps that were taken before, 0 if training begins anew.

        Instead of calling `rest_of` one may begin the data there. All ranks must call it.
        """
        found = self.found()
        self._continues = found is not None
        return 0 if found is None else found.step

    def _load(self, transport: Transport | None) -> agreement.Found | None:
        if self._loaded:
            return self._found
        rank, size = (0, 1) if transport is None else (transport.rank, transport.size)
        last = agreement.newest_stage(self.directory, transport)
        found = None
        if last is not None and self.resume == "never":
            self._move_aside(transport)
            last = None
        elif last is not None:
            found = agreement.find(self.directory, transport, last)
        if found is None and self.resume == "must":
            raise UsageError(
                f"resume=must, but {self.directory} has no checkpoints; with resume=auto the "
                "training would begin anew"
            )
        number = 0 if last is None else last.number
        same = found is not None and found.stage.ranks == size
        self._stage = Stage(number if same else number + 1, size)
        if found is not None and rank == 0:
            _log.warning("going on from %s, step %d", self.directory / found.stage.name, found.step)
        self._found, self._loaded = found, True
        return found

    def _move_aside(self, transport: Transport | None) -> None:
        """Rename the directory: rank 0 first; then others whose directory is not the same one."""
        rank = 0 if transport is None else transport.rank
        for turn in (rank == 0, rank != 0):
            reason, number = "", 1
            if turn and stages(self.directory):
                while (aside := Path(f"{self.directory}-{number}")).exists():
                    number += 1
                try:
                    self.directory.rename(aside)
                except OSError as error:
                    reason = f"{self.directory} cannot be renamed ({files.reason(error)})"
            for other in world.gather_over(transport, reason, "the earlier checkpoints"):
                if other:
                    raise UsageError(other)

    # Keras' hooks.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore what was saved, before the ranks join."""
        self._algorithm = algorithm_beside("Checkpoint")
        self._began = True
        transport = self._algorithm.transport
        found = self._load(transport)
        assert self._stage is not None
        rank = 0 if transport is None else transport.rank
        self._writer = Writer(self.directory, self._stage, rank, self.keep, self.model)
        if found is not None and not self._resumed:
            self._restore(found)
            # What is large is not needed any more.
            small = {name: found.state[name] for name in ("also", "batch")}
            self._found = dataclasses.replace(found, state=small)
        else:
            self._resumed = True
        self._algorithm.checkpoint_due, self._algorithm.checkpoint_now = self._is_time, False
        self._saved_step, self._saved_at = self._step, time.monotonic()

    def _restore(self, found: agreement.Found) -> None:
        algorithm, saved = self._algorithm, found.state
        assert algorithm is not None
        if saved["name"] != algorithm.name:
            raise UsageError(
                f"the checkpoints in {self.directory} are of algorithm={saved['name']}, not "
                f"{algorithm.name}; move them away to begin anew"
            )
        if not state.is_built(self.model):
            raise UsageError(
                f"the model {self.model.name} is not built, so its checkpoint cannot be restored: "
                "call model.build(input_shape), or the model itself, before training"
            )
        own = found.own and saved["own"]
        if own:
            late = ("metrics", "unknown_to_keras")
            self._late = {name: saved["model"][name] for name in late}
        model_state.restore(self.model, saved["model"], own=own)
        kept = {**saved["algorithm"], "step": found.step}
        if found.other_ranks:
            kept["due"] = 0  # it counts steps of another number of ranks
            self._scale_iterations(found)
        algorithm.resume(kept, own=own)
        self.model._initial_epoch = self._epoch = saved["epoch"]
        self._epoch_began_at = found.step - _batches(found)
        if found.other_ranks:
            self._begin_stage(found)

    def _scale_iterations(self, found: agreement.Found) -> None:
        """Let schedules count passes: with more ranks a pass has fewer steps."""
        # The saved mean of whole numbers was rounded, so it is not scaled: an optimizer that had
        # counted each step has still done so, and errors do not add up from stage to stage.
        for optimizer in state.optimizers(self.model).values():
            for part in state.parts(optimizer):
                per_step = int(part._iterations.numpy()) / max(found.mean_step, 1)
                part._iterations.assign(round(per_step * found.step))

    def _begin_stage(self, found: agreement.Found) -> None:
        """Save the mean as the first checkpoint of each rank in the new stage."""
        assert self._algorithm is not None
        transport = self._algorithm.transport
        snapshot = {
            **found.state,
            "own": False,
            "batch": _batches(found),
            "model": model_state.capture(self.model),
            "algorithm": {**found.state["algorithm"], "due": 0},
            "also": self._also(),
        }
        assert self._writer is not None
        self._writer.begin_stage(found.step, snapshot, transport)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note where the epoch begins."""
        self._epoch = epoch
        self.model._initial_epoch = None  # it was read; a later training must not see it
        if self._lengths is not None:
            set_epoch_length(self._lengths[self._resumed])
        if self._resumed or not self._continues:
            self._epoch_began_at = self._step

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save, if it is time: now no callback has still to see the last step."""
        algorithm = self._algorithm
        assert algorithm is not None
        assert self._writer is not None
        if self._late is not None:
            if not model_state.restore_late(self.model, self._late, within_epoch=self._continues):
                _log.warning(
                    "the model %s has other variables that Keras does not know than its checkpoint "
                    "has; they begin anew",
                    self.model.name,
                )
            self._late = None
        if self._writer.is_busy and not algorithm.synchronous:
            return  # later; synchronous ranks wait for the file instead, to save at one step
        if self.steps is not None:
            due = self._step - self._saved_step >= self.steps
        else:
            due = algorithm.checkpoint_now
        if due:
            self._save()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """At a signal save at once, since the process may soon be killed."""
        assert self._algorithm is not None
        if self.model.stop_training and self._algorithm.stop_requested:
            self._save()
            assert self._writer is not None
            self._writer.wait()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The next checkpoint is of the next epoch."""
        self._resumed = True
        if not self.model.stop_training:
            self._epoch, self._epoch_began_at = epoch + 1, self._step

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Save the end, and wait for the file."""
        assert self._algorithm is not None
        assert self._writer is not None
        self._resumed = True
        if self._step > self._saved_step:
            self._save()
        self._writer.close()
        self._algorithm.checkpoint_due = lambda: False

    @property
    def _step(self) -> int:
        assert self._algorithm is not None
        return self._algorithm.local_step()

    def _is_time(self) -> bool:
        return self.steps is None and time.monotonic() - self._saved_at >= 60 * self.every

    # Saving.

    def _save(self) -> None:
        """Copy the state, and let the thread write it."""
        assert self._writer is not None
        self._writer.wait()
        self._saved_step, self._saved_at = self._step, time.monotonic()
        self._writer.write(self._step, self._snapshot())

    def _snapshot(self) -> Mapping[str, Any]:
        """A copy of this rank's state."""
        algorithm = self._algorithm
        assert algorithm is not None
        return {
            "name": algorithm.name,
            "synchronous": algorithm.synchronous,
            "own": True,
            "step": self._step,
            "epoch": self._epoch,
            "batch": self._step - self._epoch_began_at,
            "model": model_state.capture(self.model),
            "algorithm": algorithm.state(),
            "also": self._also(),
        }


def _batches(found: agreement.Found) -> int:
    """Batches of the interrupted epoch that this rank has trained on."""
    return round(float(found.state["batch"]) * found.scale)
