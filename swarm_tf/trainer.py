"""The custom loop: blocks of local steps inside one tf.function, driving Keras callbacks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swarm_tf.algorithm import Algorithm


class Trainer:
    """Trains a compiled Keras model; between two boundaries Python does not run.

    The number of steps in a block is a tensor, so fixed and random numbers of local steps share
    one trace.

    ```python
    Trainer(model).fit(dataset, steps=1000, steps_per_epoch=100, callbacks=[SwarmCallback()])
    ```

    Args:
      model: compiled.
      jit_compile: compile a training step with XLA; slower than not on most CPUs.
      longest_block: steps after which the hooks run at the latest.

    Attributes:
      train_seconds: spent in steps and exchanges so far.
      wait_seconds: of these, spent waiting for the next batch of data.
    """

    def __init__(
        self, model: keras.Model, *, jit_compile: bool = False, longest_block: int = 64
    ) -> None:
        self.model = model
        self._longest = longest_block
        self.train_seconds = 0.0
        self.wait_seconds = 0.0
        self._step_seconds: list[float] = []
        self._jit_compile = jit_compile

    @property
    def step_seconds_median(self) -> float:
        """Median over blocks of the time of one local step, exchanges not included."""
        return float(np.median(self._step_seconds)) if self._step_seconds else 0.0

    def fit(
        self,
        dataset: tf.data.Dataset,
        *,
        steps: int,
        steps_per_epoch: int,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        """Take `steps` local steps over `dataset`, which repeats for ever.

        Callbacks see the hooks of `model.fit`; `on_train_batch_end` comes at the end of a block,
        with the number of steps in this call so far, minus one, as `batch`.

        Args:
          dataset: batches as `model.fit` takes them.
          steps: optimizer steps.
          steps_per_epoch: steps between `on_epoch_begin` and `on_epoch_end`; the last epoch may
            be shorter.
          callbacks: Keras callbacks; an `Algorithm` sets the boundaries.
        """
        hooks = keras.callbacks.CallbackList(list(callbacks), model=self.model, epochs=1)
        algorithms = [c for c in callbacks if isinstance(c, Algorithm)]
        batches = iter(dataset)
        self.model.stop_training = False
        # Traced, with an empty block, before the ranks start together: or a quick one would train
        # far ahead alone.
        if not self.model.built:
            inputs, *_ = next(iter(dataset))
            self.model(inputs)
        self.model.optimizer.build(self.model.trainable_variables)
        # Anew each time: callbacks may have wrapped the step, or do so no more.
        step = self.model.train_step
        self._step = tf.function(step, jit_compile=True) if self._jit_compile else step
        self._block = tf.function(self._block_graph)
        self._block(batches, tf.constant(0))
        hooks.on_train_begin()
        done, logs = 0, {}
        for epoch in itertools.count():
            self.model.reset_metrics()
            hooks.on_epoch_begin(epoch)
            end = min(steps, (epoch + 1) * steps_per_epoch)
            while done < end and not self.model.stop_training:
                hooks.on_train_batch_begin(done)  # the ranks may meet, which sets a boundary
                count = min(end - done, self._until_boundary(algorithms))
                logs = self._run(batches, count, hooks, done + count - 1)
                done += count
            hooks.on_epoch_end(epoch, logs)
            if done >= steps or self.model.stop_training:
                break
        hooks.on_train_end(logs)

    def _until_boundary(self, algorithms: Sequence[Algorithm]) -> int:
        return min([self._longest, *(a.due - a.local_step() for a in algorithms)])

    def _run(
        self, batches: Any, count: int, hooks: keras.callbacks.CallbackList, last: int
    ) -> dict[str, float]:
        """One block and its hook."""
        began = time.perf_counter()
        results, waited = self._block(batches, tf.constant(count))
        self.wait_seconds += float(waited)
        logs = {name: float(value) for name, value in results.items()}
        ended = time.perf_counter()
        self._step_seconds.append((ended - began) / count)
        hooks.on_train_batch_end(last, logs)
        self.train_seconds += time.perf_counter() - began
        return logs

    def _block_graph(
        self, batches: Any, count: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        waited = tf.constant(0.0, tf.float64)
        for _ in tf.range(count):
            with tf.control_dependencies([waited]):  # and so the whole step before
                began = tf.timestamp()
            with tf.control_dependencies([began]):
                batch = next(batches)
            with tf.control_dependencies(tf.nest.flatten(batch)):
                ended = tf.timestamp()
            with tf.control_dependencies([ended]):  # or a lone thread might take the step first
                batch = tf.nest.map_structure(tf.identity, batch)
            self._step(batch)
            waited += ended - began
        return self.model.get_metrics_result(), waited
