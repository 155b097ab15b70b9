"""A loop that takes blocks of local steps inside one tf.function, with Keras callbacks."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from swarm_tf.algorithm import Algorithm
from swarm_tf.errors import UsageError

Logs = dict[str, Any]


class Trainer:
    """Trains a compiled Keras model; between two boundaries Python does not run.

    The number of steps in a block is a tensor, so fixed and random numbers of local steps share
    one trace.

    ```python
    Trainer(model).fit(dataset, steps=1000, steps_per_epoch=100, callbacks=[SwarmCallback()])
    ```

    Args:
      model: compiled.
      jit_compile: whether XLA compiles a training step, which is slower on most CPUs; None: as the
        model was compiled.
      longest_block: most steps between two calls of the hooks; it replaces
        `compile(steps_per_execution=...)`, which is ignored.

    Attributes:
      steps_taken: local steps in the last `fit` so far.
      train_seconds: spent in steps and exchanges so far.
      wait_seconds: of these, spent waiting for the next batch of data.

    Raises:
      UsageError: `model` is not compiled, or was made for several replicas (MirroredStrategy).
    """

    def __init__(
        self, model: keras.Model, *, jit_compile: bool | None = None, longest_block: int = 64
    ) -> None:
        if not model.compiled:
            raise UsageError("Trainer(model) needs a compiled model; call model.compile(...) first")
        replicas = model.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            raise UsageError(
                f"Trainer(model) needs a model on one device, but a tf.distribute strategy holds "
                f"{replicas} replicas of it; start one rank for each device instead"
            )
        self.model = model
        self._longest = _positive("longest_block", longest_block)
        self._jit_compile = jit_compile
        self.steps_taken = 0
        self.train_seconds = 0.0
        self.wait_seconds = 0.0
        self._step_seconds: list[float] = []

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
        first_step: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> keras.callbacks.History:
        """Take `steps` local steps over `dataset`.

        Leaves what `model.fit(dataset, epochs=steps / steps_per_epoch, verbose=0)` leaves:
        weights, metrics, optimizer (averaged weights of `use_ema` included), random state and
        `model.history`; and callbacks see the same hooks, epochs, logs and `params`. What differs:

        - Batch hooks are called once per block, at the latest after `longest_block` steps;
          `on_train_batch_end` gets the index, in its epoch, of the last step in the block.
        - The step is traced before `on_train_begin`, so callbacks find the model built. (With
          `run_eagerly` nothing is traced.)
        - A dataset that ends is restarted at once, also within an epoch.
        - There is no validation (a callback may call `model.evaluate` in its `on_epoch_end`), no
          class weights (the dataset may have sample weights), and no progress bar.
        - `make_train_function`, and Keras' limits on epochs and steps for debugging
          (`KERAS_MAX_EPOCHS`), are ignored.

        Args:
          dataset: batches as `model.fit` takes them: x, (x, y) or (x, y, sample_weight), or what
            else the model's `train_step` takes.
          steps: local steps, at least 1.
          steps_per_epoch: steps between `on_epoch_begin` and `on_epoch_end`, at least 1; the last
            epoch may be shorter.
          first_step: of `steps`, those that an earlier run has taken; `dataset` begins with the
            batch of the next one.
          callbacks: Keras callbacks; an `Algorithm` sets the boundaries.

        Returns:
          `model.history`: the logs of every epoch.

        Raises:
          UsageError: an argument breaks its rule, or `dataset` has no batches.
        """
        steps = _positive("steps", steps)
        steps_per_epoch = _positive("steps_per_epoch", steps_per_epoch)
        if not isinstance(dataset, tf.data.Dataset):
            raise UsageError(
                f"dataset must be a tf.data.Dataset, not {type(dataset).__name__}; "
                "tf.data.Dataset.from_generator makes one of a generator"
            )
        epochs = -(-steps // steps_per_epoch)
        hooks = callbacks
        if not isinstance(hooks, keras.callbacks.CallbackList):
            hooks = keras.callbacks.CallbackList(
                list(callbacks),
                add_history=True,
                verbose=0,
                epochs=epochs,
                steps=steps_per_epoch,
                model=self.model,
            )
        algorithms = [c for c in hooks.callbacks if isinstance(c, Algorithm)]
        self.model.stop_training = False
        block = self._make_block(dataset)
        hooks.on_train_begin()
        logs: Logs = {}
        epoch_logs: Logs | None = None
        # BackupAndRestore sets it, to continue an interrupted training.
        first = getattr(self.model, "_initial_epoch", None) or 0
        if first_step:
            first = first_step // steps_per_epoch
        for epoch in range(first, epochs):
            self.model.reset_metrics()
            hooks.on_epoch_begin(epoch)
            before = epoch * steps_per_epoch
            self.steps_taken = max(before, first_step)
            end = min(steps, before + steps_per_epoch)
            while self.steps_taken < end:
                hooks.on_train_batch_begin(self.steps_taken - before)
                count = min(end - self.steps_taken, self._until_boundary(algorithms))
                began = time.perf_counter()
                logs = self._run(block, count)
                self.steps_taken += count
                hooks.on_train_batch_end(self.steps_taken - before - 1, logs)
                self.train_seconds += time.perf_counter() - began
                if self.model.stop_training:
                    break
            epoch_logs = self._epoch_logs(logs)
            hooks.on_epoch_end(epoch, epoch_logs)
            if self.model.stop_training:
                break
        if isinstance(self.model.optimizer, keras.optimizers.Optimizer):
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        hooks.on_train_end(epoch_logs)
        return self.model.history

    def _until_boundary(self, algorithms: Sequence[Algorithm]) -> int:
        return max(1, min([self._longest, *(a.due - a.local_step() for a in algorithms)]))

    def _epoch_logs(self, last: Logs) -> Logs:
        """The metrics of an epoch, or the last logs of a `train_step` that returns other ones.

        The same choice as in `model.fit`.
        """
        metrics = self.model.get_metrics_result()
        return dict(metrics if isinstance(last, dict) and metrics.keys() == last.keys() else last)

    def _run(self, block: Block, count: int) -> Logs:
        """`count` steps, and the logs of the last one."""
        began = time.perf_counter()
        try:
            logs, waited = block(count)
        except (tf.errors.OutOfRangeError, StopIteration) as error:
            raise UsageError("dataset has no batches; it must have at least one") from error
        self.wait_seconds += waited
        self._step_seconds.append((time.perf_counter() - began) / count)
        return logs

    def _make_block(self, dataset: tf.data.Dataset) -> Block:
        """The function that takes steps; traced with an empty block, which changes nothing.

        Traced before the ranks start together: a rank that traces quickly would else train far
        ahead. Traced again in each `fit`: callbacks may have wrapped the step, or unwrapped it.
        """
        endless = dataset.cardinality() == tf.data.INFINITE_CARDINALITY
        batches = iter(dataset if endless else dataset.repeat())
        if self.model.run_eagerly or tf.config.functions_run_eagerly():
            return _eager_block(self.model.train_step, batches)
        jit_compile = self.model.jit_compile if self._jit_compile is None else self._jit_compile
        return _traced_block(self.model.train_step, batches, dataset.element_spec, jit_compile)


Block = Callable[[int], tuple[Logs, float]]
"""Takes a number of steps; returns the logs of the last one, and the seconds waited for data."""


def _positive(name: str, value: Any) -> int:
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise UsageError(f"{name}={value} must be a whole number, at least 1")
    return number


def _eager_block(train_step: Callable[[Any], Logs], batches: Any) -> Block:
    def block(count: int) -> tuple[Logs, float]:
        logs: Logs = {}
        waited = 0.0
        for _ in range(count):
            began = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - began
            logs = train_step(_without_optionals(batch))
        return logs, waited

    return block


def _traced_block(
    train_step: Callable[[Any], Logs], batches: Any, spec: Any, jit_compile: bool
) -> Block:
    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def one_step(batch: Any) -> Logs:
        with tf.variable_creator_scope(_create_at_once):
            return train_step(batch)

    # A separate function, as in `model.fit`, so that `tf.random` draws the same numbers. Functions
    # are called through their one trace: TensorFlow would warn of the fifth tf.function here.
    step = tf.function(one_step, jit_compile=jit_compile).get_concrete_function(
        _without_optionals(spec)
    )
    kinds = tf.nest.map_structure(tf.type_spec_from_value, step.structured_outputs)
    no_logs = tf.experimental.Optional.empty(kinds)

    def steps(batches: Any, count: tf.Tensor) -> tuple[tf.experimental.Optional, tf.Tensor]:
        logs, waited = no_logs, tf.constant(0.0, tf.float64)
        for _ in tf.range(count):
            with tf.control_dependencies([waited]):  # which waits for the whole step before
                began = tf.timestamp()
            with tf.control_dependencies([began]):
                batch = next(batches)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                ended = tf.timestamp()
            with tf.control_dependencies([ended]):  # else a lone thread might take the step first
                batch = tf.nest.map_structure(tf.identity, _without_optionals(batch))
                logs = tf.experimental.Optional.from_value(step(batch))
            waited += ended - began
        return logs, waited

    traced = tf.function(steps).get_concrete_function(batches, tf.TensorSpec([], tf.int32))

    def block(count: int) -> tuple[Logs, float]:
        logs, waited = traced(batches, tf.constant(count))
        return logs.get_value() if count else {}, float(waited)

    block(0)
    return block


def _create_at_once(create: Callable[..., tf.Variable], **what: Any) -> tf.Variable:
    """A variable that is created during tracing, with its initial value.

    tf.function itself would postpone the value and trace a second time, which fails where the step
    has control dependencies around it.
    """
    if not callable(what["initial_value"]):  # a tensor of the trace
        return create(**what)
    with tf.init_scope():
        return ResourceVariable(**what)


def _without_optionals(batch: Any) -> Any:
    """`batch` with None for its optionals, as in Keras."""
    optional = tf.experimental.Optional, tf.OptionalSpec
    return tf.nest.map_structure(lambda x: None if isinstance(x, optional) else x, batch)
