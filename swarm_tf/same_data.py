"""Warns if two ranks read the same data: the most common mistake, a missing `.shard`."""

from __future__ import annotations

import hashlib
import logging
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swarm_tf.transport import collectives
from swarm_tf.transport.base import Transport

_ELEMENTS = 4096
"""How many elements of each tensor enter a digest."""

_TAG = 1008  # the last of a training; see collectives.session_tag
_log = logging.getLogger("swarm_tf")


class FirstBatch:
    """A digest of the first batch that a model is trained on.

    It is computed within the training step, since Keras passes batches to nothing else.
    """

    def __init__(self, model: keras.Model) -> None:
        self._digest = tf.Variable(0, dtype=tf.int64, trainable=False)
        train_step = model.train_step

        def watched(data: Any, *arguments: Any, **options: Any) -> Any:
            tf.cond(tf.equal(self._digest, 0), lambda: self._note(data), lambda: self._digest)
            return train_step(data, *arguments, **options)

        model.train_step = watched

    @classmethod
    def of(cls, model: keras.Model) -> FirstBatch | None:
        """Watch a model's first batch; None if its training step is traced already."""
        if model not in _watched:
            if model.train_function is not None:
                return None
            _watched[model] = cls(model)
        return _watched[model]

    def _note(self, data: Any) -> tf.Tensor:
        total = tf.constant(1, tf.int64)
        for number, tensor in enumerate(tf.nest.flatten(data, expand_composites=True)):
            if tensor is None:  # there are no sample weights
                continue
            tensor = tf.convert_to_tensor(tensor)
            if tensor.dtype in (tf.variant, tf.resource):
                continue
            numbers = tf.reshape(tensor, [-1])[:_ELEMENTS]
            if numbers.dtype == tf.string:
                numbers = tf.strings.to_hash_bucket_fast(numbers, 2**31)
            elif numbers.dtype.is_floating or numbers.dtype.is_complex:
                numbers = tf.bitcast(tf.cast(numbers, tf.float32), tf.int32)
            places = tf.range(1, tf.size(numbers) + 1, dtype=tf.int64)
            weighed = tf.cast(numbers, tf.int64) * (places * 2654435761 + 40503 * number + 1)
            total = total * 31 + tf.reduce_sum(weighed)
        return self._digest.assign(tf.where(total == 0, tf.constant(1, tf.int64), total))

    def value(self) -> int:
        """The digest; 0 before the first batch."""
        return int(self._digest.numpy())


_watched: weakref.WeakKeyDictionary[keras.Model, FirstBatch] = weakref.WeakKeyDictionary()


class SameData:
    """Compares what this rank reads with what the rank before it reads, in the background.

    Args:
      batch: the digest of this rank's first batch; None if there is none.
      arrays: `arrays_of` the caller. If it is not 0 it is compared in place of the first batch,
        since Keras shuffles arrays.
    """

    def __init__(self, transport: Transport, batch: FirstBatch | None, arrays: int) -> None:
        self._transport, self._batch, self._arrays = transport, batch, arrays
        self._theirs = np.zeros(1, np.int64)
        self._sent: Callable[[], bool] | None = None
        self._received: Callable[[], bool] | None = None
        self._tag = collectives.session_tag(transport, _TAG)
        if transport.rank > 0:
            self._received = transport.irecv(self._theirs, transport.rank - 1, self._tag)

    def finish(self, timeout: float) -> None:
        """Wait for the other digest; to be called when both ranks have ended their training."""
        deadline = time.monotonic() + timeout
        while not self.poll() and time.monotonic() < deadline:
            time.sleep(0.001)

    def poll(self) -> bool:
        """Send this rank's digest, compare the other one if it has come; whether both is done."""
        if self._sent is None and self._transport.rank + 1 < self._transport.size:
            mine = np.array([self._value()], np.int64)
            self._sent = self._transport.isend(mine, self._transport.rank + 1, self._tag)
        if self._received is not None and self._received():
            self._received = None
            rank = self._transport.rank
            if self._theirs[0] and int(self._theirs[0]) == self._value():
                _log.warning(
                    "ranks %d and %d read the same data; give each its own part, as with "
                    "dataset.shard(swarm_tf.size(), swarm_tf.rank())",
                    rank - 1,
                    rank,
                )
        if self._sent is not None and self._sent():
            self._sent = lambda: True
        return self._received is None and (self._sent is None or self._sent())

    def _value(self) -> int:
        return self._arrays or (self._batch.value() if self._batch else 0)


def arrays_of(caller: FrameType | None) -> int:
    """A digest of the arrays that the frame of `model.fit` trains on; 0 if it has none."""
    data = caller.f_locals.get("x") if caller is not None else None
    tensors = [t for t in tf.nest.flatten(data) if isinstance(t, np.ndarray | tf.Tensor)]
    if not tensors or len(tensors) != len(tf.nest.flatten(data)):
        return 0
    whole = hashlib.blake2b(digest_size=7)
    for tensor in tensors:
        part = np.asarray(tensor[:_ELEMENTS])
        whole.update(repr(tensor.shape).encode())
        whole.update(repr(part.tolist()).encode() if part.dtype == object else part.tobytes())
    return int.from_bytes(whole.digest(), "little") or 1
