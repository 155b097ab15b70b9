"""ConsensusCheckpoint: writes the mean of all ranks' models while they train on."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swarm_tf import consensus, files, state
from swarm_tf.algorithm import Algorithm, algorithm_beside
from swarm_tf.cluster import world
from swarm_tf.errors import UsageError
from swarm_tf.options import POSITIVE, checked, rule
from swarm_tf.transport import collectives
from swarm_tf.transport.base import Array, Transport
from swarm_tf.weights import FlatWeights

_log = logging.getLogger("swarm_tf")

_TAG = 1007  # see collectives.session_tag
_SUFFIX = ".weights.h5"
_EVERY = rule('1 or more, or "epoch"', lambda value: value >= 1)
_LONGEST_SLEEP = 0.02  # seconds; no training waits for a mean


class ConsensusCheckpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes the mean of all ranks' models at marks, without stopping the training.

    When a rank passes a mark (every so many steps, or the end of an epoch) it copies its weights
    and trains on. A background thread takes the mean when the slowest rank has passed the mark too,
    and rank 0's thread writes it, for `model.load_weights`: the mean of what is averaged, rank 0's
    values of all else, no optimizer. A rank that passes the next mark before the last mean is taken
    gives its weights a little later. A rank whose training has ended, or whose weights are not
    finite, is left out.

    ```python
    callbacks = [SwarmCallback(), ConsensusCheckpoint("mean-{epoch}.weights.h5")]
    ```

    Every rank needs it. Each mark costs the training a copy of the weights, and as much memory.

    Args:
      filepath: ends with .weights.h5. `{step}` or `{epoch}` in it stands for that of the mark;
        without it each mean replaces the last one. Files are written atomically; if one can't be
        written, a warning is logged and training goes on.
      every: steps between marks, or "epoch".
      timeout_seconds: longest wait for the last mean when the training is over.

    Raises:
      UsageError: a value breaks its rule, or there is no algorithm of swarm_tf among the callbacks.
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        every: int | str = "epoch",
        *,
        timeout_seconds: float = world.START_SECONDS,
    ) -> None:
        super().__init__()
        key = "ConsensusCheckpoint."
        self.filepath = os.fspath(filepath)
        if not self.filepath.endswith(_SUFFIX):
            raise UsageError(f"{key}filepath={self.filepath} must end with {_SUFFIX}")
        if every != "epoch":
            every = checked(f"{key}every", every, int, _EVERY)
        self.every = every
        self._path_of(1)
        self.timeout_seconds = checked(f"{key}timeout_seconds", timeout_seconds, float, POSITIVE)
        self._algorithm: Algorithm | None = None
        self._began_at = self._epochs = 0
        self._watches = self._ended = False
        self._means: _MeanThread | None = None
        self._next_mark = 1  # the next mark, on one rank alone

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the algorithm that trains."""
        self._algorithm = algorithm_beside("ConsensusCheckpoint")
        self._began_at, self._epochs = self._algorithm.local_step(), 0
        self._watches = self._ended = False
        self._means, self._next_mark = None, 1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Be called when the training is over, also if it fails."""
        self._watch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Give the weights, if this is a mark."""
        if self.every != "epoch":
            self._give_if_due()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Give the weights, if this is a mark."""
        self._epochs += 1
        self._give_if_due()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """From now on means are taken without this rank."""
        assert self._algorithm is not None
        self._watch()
        self._ended = True
        if self._algorithm.weights is not None:
            self._end(self._algorithm.weights)

    def _watch(self) -> None:
        if not self._watches and self._algorithm is not None:
            self._watches = True
            self._algorithm.when_over(self._on_training_over)

    def _give_if_due(self) -> None:
        """Give the weights to the thread, if a mark is passed and the thread waits for it."""
        algorithm, passed = self._algorithm, self._marks_passed()
        assert algorithm is not None
        if algorithm.transport is None:
            if passed >= self._next_mark:
                self._write_now(passed)
                self._next_mark = passed + 1
        elif algorithm.weights is not None:
            means = self._started()
            if means.is_free and means.mark <= passed:
                means.give(algorithm.weights.copy())

    def _marks_passed(self) -> int:
        """How many marks this rank has passed."""
        assert self._algorithm is not None
        if self.every == "epoch":
            return self._epochs
        return (self._algorithm.local_step() - self._began_at) // int(self.every)

    def _end(self, weights: FlatWeights) -> None:
        self._started().end(weights.copy(), self._marks_passed())

    def _started(self) -> _MeanThread:
        if self._means is None:
            assert self._algorithm is not None
            self._means = _MeanThread(self._algorithm, self._write_mean)
            self._means.start()
        return self._means

    def _on_training_over(self) -> None:
        """The training is over on all ranks, or failed on this one."""
        if not self._ended:
            if self._means is not None:
                self._means.abandoned = True
            return
        assert self._algorithm is not None
        if self._algorithm.weights is None:
            return
        if self._means is None:  # it had no batches, so no thread yet
            self._end(self._algorithm.weights)
        means = self._started()
        means.join(self.timeout_seconds)
        if means.is_alive():
            means.abandoned = True
            _log.warning(
                "ConsensusCheckpoint: after %g s not all ranks have passed mark %d, so its mean is "
                "not written; every rank needs this callback",
                self.timeout_seconds,
                means.mark,
            )

    def _path_of(self, mark: int) -> Path:
        fields = {"epoch": mark} if self.every == "epoch" else {"step": mark * int(self.every)}
        try:
            return Path(self.filepath.format(**fields))
        except (KeyError, IndexError, ValueError):
            raise UsageError(
                f"ConsensusCheckpoint.filepath={self.filepath} may name {{{next(iter(fields))}}} "
                f"where every={self.every}, and nothing else in braces"
            ) from None

    def _write_mean(self, mark: int, chunks: consensus.Chunks) -> None:
        """Write a mean on the background thread; the training goes on with the model unchanged."""
        assert self._algorithm is not None
        assert self._algorithm.weights is not None
        weights = self._algorithm.weights
        with tf.device("CPU:0"):
            values = [
                (variable, tf.convert_to_tensor(value, variable.dtype))
                for variable, value in zip(weights.variables, weights.split(chunks), strict=True)
            ]
        # On this thread, and here alone, these variables have other values.
        with keras.StatelessScope(state_mapping=values):
            self._write_now(mark)

    def _write_now(self, mark: int) -> None:
        """Write the weights that the model has on this thread."""
        path = self._path_of(mark)
        # To save an optimizer, Keras creates one, which no scope allows.
        owned = [p for o in state.optimizers(self.model).values() for p in state.parts(o)]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, files.weights_of(self.model, without=owned))
        except Exception as error:
            reason = files.reason(error) if isinstance(error, OSError) else error
            _log.warning("%s cannot be written (%s); training goes on", path, reason)


class _MeanThread(threading.Thread):
    """Takes one mean after the other, together with the threads of all other ranks.

    Attributes:
      mark: the number of the mean that is next or under way.
      abandoned: set it to end the thread, whatever it waits for.
    """

    def __init__(
        self, algorithm: Algorithm, write: Callable[[int, consensus.Chunks], None]
    ) -> None:
        assert algorithm.transport is not None
        self._transport: Transport = algorithm.transport
        rank = self._transport.rank
        super().__init__(name=f"swarm-tf checkpoints of rank {rank}", daemon=True)
        self.mark = 1
        self.abandoned = False
        self._tag = collectives.session_tag(self._transport, _TAG)
        self._write = write
        self._changed = threading.Condition()
        self._given: consensus.Chunks | None = None
        self._last: consensus.Chunks | None = None  # once the training has ended
        self._last_mark = 0

    @property
    def is_free(self) -> bool:
        """Whether the thread waits for this rank's weights for `mark`."""
        return self._given is None

    def give(self, chunks: consensus.Chunks) -> None:
        """Hand over this rank's weights for `mark`."""
        with self._changed:
            self._given = chunks
            self._changed.notify()

    def end(self, chunks: consensus.Chunks, passed: int) -> None:
        """This rank's training has ended with weights `chunks`, after `passed` marks."""
        with self._changed:
            self._last, self._last_mark = chunks, passed
            self._changed.notify()

    def run(self) -> None:
        """Take one mean after the other, until all ranks have ended."""
        try:
            while self._take_mean():
                pass
        except _Abandoned:
            pass
        except Exception as error:
            _log.warning("ConsensusCheckpoint stops writing: %s", error)

    def _take_mean(self) -> bool:
        """Take one mean; False if all ranks had ended before its mark."""
        with self._changed:
            while self._given is None and self._last is None:
                self._changed.wait(1.0)
                if self.abandoned:
                    raise _Abandoned
            own, ended = self._given, self._last is not None
            if own is None:
                assert self._last is not None
                own = [chunk.copy() for chunk in self._last]
                counts = self.mark <= self._last_mark
            else:
                counts = True
        counts = counts and consensus.finite(own)
        flags = np.array([counts, not ended], np.float32)
        self._average(flags)
        size = self._transport.size
        count, training = (round(float(share) * size) for share in flags)
        if count:
            chunks = own if counts else [np.zeros_like(chunk) for chunk in own]
            for chunk in chunks:
                self._average(chunk)
                chunk *= chunk.dtype.type(size / count)
            if self._transport.rank == 0:
                self._write(self.mark, chunks)
        with self._changed:
            self.mark += 1
            self._given = None
        return count + training > 0

    def _average(self, array: Array) -> None:
        collectives.run([self._unless_abandoned(array)], _LONGEST_SLEEP)

    def _unless_abandoned(self, array: Array) -> collectives.Collective:
        for _ in collectives.mean(self._transport, array, self._tag, math.inf):
            if self.abandoned:
                raise _Abandoned
            yield


class _Abandoned(Exception):
    """The training was over before the mean was taken."""
