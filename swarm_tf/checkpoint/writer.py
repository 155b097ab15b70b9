"""Writes the checkpoints of one rank on a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy.typing as npt

from swarm_tf import consensus, files, state
from swarm_tf.checkpoint import layout, model_state
from swarm_tf.checkpoint.store import Stage, Store, layout_path, remove_other_stages
from swarm_tf.cluster import environment, world
from swarm_tf.transport.base import Transport

_log = logging.getLogger("swarm_tf")

_LONGEST_WRITE = 600.0
"""Seconds for which the training waits for a file before it goes on, or ends."""


class Writer:
    """Writes one checkpoint after the other; what cannot be written is only a warning.

    Args:
      directory, stage, rank, keep: see `Store`.
      model: whose states are written.
    """

    def __init__(
        self, directory: Path, stage: Stage, rank: int, keep: int, model: keras.Model
    ) -> None:
        self._directory, self._stage, self._rank, self._model = directory, stage, rank, model
        self._store = Store(directory, stage, rank, keep)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="swarm-tf checkpoint")
        self._writing: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def write(self, step: int, snapshot: Mapping[str, Any]) -> None:
        """Begin to write; the writer must not be busy."""
        self._writing = self._thread.submit(self._write, step, snapshot)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk, or could not be written."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result(_LONGEST_WRITE)
        except TimeoutError:  # before OSError, of which it is a kind
            _log.warning(
                "the checkpoint in %s is not on disk after %g s", self._directory, _LONGEST_WRITE
            )
        except OSError as error:
            self._warn(files.reason(error))

    def close(self) -> None:
        """Wait for the last checkpoint; no other follows."""
        self.wait()
        self._thread.shutdown(wait=False)

    def begin_stage(
        self, step: int, snapshot: Mapping[str, Any], transport: Transport | None
    ) -> None:
        """Write the first checkpoint of a stage on all ranks; then remove other stages."""
        reason = ""
        try:
            self._store.write(step, snapshot)
        except OSError as error:
            reason = files.reason(error)
        reasons = world.gather_over(transport, reason, "the first checkpoint", world.FIRST_SECONDS)
        if any(reasons):
            self._warn(next(filter(None, reasons)))
        elif self._rank == 0:
            remove_other_stages(self._directory, self._stage)

    def _warn(self, reason: str) -> None:
        _log.warning(
            "the checkpoint in %s cannot be written (%s); training goes on", self._directory, reason
        )

    # The thread.

    def _write(self, step: int, snapshot: Mapping[str, Any]) -> None:
        if not self._is_finite(snapshot["model"]["variables"]):
            _log.warning("no checkpoint at step %d: the weights contain NaN or Inf", step)
            return
        self._write_layout()
        self._store.write(step, snapshot)
        environment.note_progress()

    def _is_finite(self, values: list[npt.NDArray[Any]]) -> bool:
        """Whether all weights that are trained are finite."""
        trained = {id(v) for v in self._model.trainable_variables}
        places = [k for k, v in enumerate(model_state.variables(self._model)) if id(v) in trained]
        return consensus.finite([values[place] for place in places])

    def _write_layout(self) -> None:
        """On rank 0, once: how Keras saves the model, for `swarm-tf consensus`."""
        path = layout_path(self._directory, self._stage)
        if self._rank or path.exists():
            return
        owned = [p for o in state.optimizers(self._model).values() for p in state.parts(o)]
        try:
            content = layout.of(self._model, model_state.variables(self._model), owned)
        except Exception as error:  # layers may save whatever they like
            _log.debug("no layout of the model: %s", error)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)
