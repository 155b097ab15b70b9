"""Writes the mean of all ranks' models while they train on."""

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
from swarm_tf.algorithm import Algorithm
from swarm_tf.cluster import world
from swarm_tf.errors import UsageError
from swarm_tf.options import POSITIVE, checked, rule
from swarm_tf.training_loop import callback_list
from swarm_tf.transport import collectives
from swarm_tf.transport.base import Array, Transport
from swarm_tf.weights import FlatWeights

_log = logging.getLogger("swarm_tf")

_TAG = 1007  # see collectives.session_tag
_ENDING = ".weights.h5"
_EVERY = rule('1 or more, or "epoch"', lambda value: value >= 1)
_LONGEST_SLEEP = 0.02  # seconds: nobody waits for a mean


class ConsensusCheckpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes the mean of all ranks' models now and then, and stops nobody for it.

    When a rank comes to a mark (every so many steps, or the end of an epoch) it copies its weights
    and trains on. A thread beside it takes the mean when the slowest rank has come there too, and
    rank 0's writes it, for `model.load_weights`: the mean of what is averaged, rank 0's of all
    else, no optimizer. A rank that is at the next mark before the last mean is there gives its
    weights a little later. One whose training has ended, or whose weights are not finite, is left
    out.

    ```python
    callbacks = [SwarmCallback(), ConsensusCheckpoint("mean-{epoch}.weights.h5")]
    ```

    All ranks have it. It costs the training one copy of the weights a mark, and as much memory.

    Args:
      filepath: ends with .weights.h5. `{step}` and `{epoch}` in it stand for the mark's; without
        them each mean takes the place of the last one. It is there whole or not at all; a file
        that can't be written is told, and training goes on.
      every: steps between marks, or "epoch".
      timeout_seconds: longest wait for the last mean when the training is over.

    Raises:
      UsageError: a value breaks its rule, or no callback of swarm_tf stands beside it.
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
        if not self.filepath.endswith(_ENDING):
            raise UsageError(f"{key}filepath={self.filepath} must end with {_ENDING}")
        if every != "epoch":
            every = checked(f"{key}every", every, int, _EVERY)
        self.every = every
        self._path_of(1)
        self.timeout_seconds = checked(f"{key}timeout_seconds", timeout_seconds, float, POSITIVE)
        self._algorithm: Algorithm | None = None
        self._began_at = self._epochs = 0
        self._watches = self._ended = False
        self._means: _Means | None = None
        self._alone = 1  # the next mark of a rank without others

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the algorithm in whose training this is."""
        among = callback_list()
        others = [] if among is None else among.callbacks
        self._algorithm = next((c for c in others if isinstance(c, Algorithm)), None)
        if self._algorithm is None:
            raise UsageError(
                "ConsensusCheckpoint needs a SwarmCallback, or another of swarm_tf's algorithms, "
                "beside it in the list of callbacks"
            )
        self._began_at, self._epochs = self._algorithm.local_step(), 0
        self._watches = self._ended = False
        self._means, self._alone = None, 1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Hear of the training's end, also where it fails."""
        self._watch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Maybe a mark."""
        if self.every != "epoch":
            self._look()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Maybe a mark."""
        self._epochs += 1
        self._look()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """The others' means go on without this rank."""
        assert self._algorithm is not None
        self._watch()
        self._ended = True
        if self._algorithm.weights is not None:
            self._end(self._algorithm.weights)

    def _watch(self) -> None:
        if not self._watches and self._algorithm is not None:
            self._watches = True
            self._algorithm.when_over(self._over)

    def _look(self) -> None:
        """Give the weights, if a mark is passed whose mean is not under way."""
        algorithm, passed = self._algorithm, self._passed()
        assert algorithm is not None
        if algorithm.transport is None:
            if passed >= self._alone:
                self._write_now(passed)
                self._alone = passed + 1
        elif algorithm.weights is not None:
            means = self._started()
            if means.is_free and means.mark <= passed:
                means.give(algorithm.weights.copy())

    def _passed(self) -> int:
        """The last mark that this rank has passed."""
        assert self._algorithm is not None
        if self.every == "epoch":
            return self._epochs
        return (self._algorithm.local_step() - self._began_at) // int(self.every)

    def _end(self, weights: FlatWeights) -> None:
        self._started().end(weights.copy(), self._passed())

    def _started(self) -> _Means:
        if self._means is None:
            assert self._algorithm is not None
            self._means = _Means(self._algorithm, self._write_mean)
            self._means.start()
        return self._means

    def _over(self) -> None:
        """The training is over on all ranks, or failed on this one."""
        if not self._ended:
            if self._means is not None:
                self._means.abandoned = True
            return
        assert self._algorithm is not None
        if self._algorithm.weights is None:
            return
        if self._means is None:  # it had no batches, so had not met the others before
            self._end(self._algorithm.weights)
        means = self._started()
        means.join(self.timeout_seconds)
        if means.is_alive():
            means.abandoned = True
            _log.warning(
                "ConsensusCheckpoint: after %g s not all ranks have come to its mark %d, which is "
                "not written; every rank needs it among its callbacks",
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
        """On the thread beside the training, which goes on with the model as it is."""
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
        """What the model's weights are on this thread."""
        path = self._path_of(mark)
        # Keras looks into an optimizer by making one, which no scope allows.
        owned = [p for o in state.optimizers(self.model).values() for p in state.parts(o)]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, files.weights_of(self.model, without=owned))
        except Exception as error:
            reason = files.reason(error) if isinstance(error, OSError) else error
            _log.warning("%s cannot be written (%s); training goes on", path, reason)


class _Means(threading.Thread):
    """Takes one mean after the other, in step with the threads of all other ranks.

    Attributes:
      mark: the number of the one that is next or under way.
      abandoned: set to let go of what it waits for.
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
        """Whether it waits for this rank's weights for `mark`."""
        return self._given is None

    def give(self, chunks: consensus.Chunks) -> None:
        """This rank's weights for `mark`."""
        with self._changed:
            self._given = chunks
            self._changed.notify()

    def end(self, chunks: consensus.Chunks, passed: int) -> None:
        """This rank's training has ended with these weights, after so many marks."""
        with self._changed:
            self._last, self._last_mark = chunks, passed
            self._changed.notify()

    def run(self) -> None:
        """One mean after the other, until all ranks have ended."""
        try:
            while self._take():
                pass
        except _Abandoned:
            pass
        except Exception as error:
            _log.warning("ConsensusCheckpoint writes no more: %s", error)

    def _take(self) -> bool:
        """One mean; False if all ranks had ended before its mark."""
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
        told = np.array([counts, not ended], np.float32)
        self._average(told)
        size = self._transport.size
        count, training = (round(float(share) * size) for share in told)
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
    """The training is over, and the mean is not."""
