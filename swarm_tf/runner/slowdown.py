"""Simulates a slower processor, for experiments with uneven nodes."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swarm_tf import gradients


class Slowdown(keras.callbacks.Callback):  # type: ignore[misc]
    """Sleeps in every step, after the gradients are computed and before they are used.

    It must come after the `Algorithm` in the list of callbacks.

    Args:
      factor: the step then takes `factor` times as long as its computation.
      least: minimum seconds of the computation, to which `factor` is applied.
    """

    def __init__(self, factor: float, least: float = 0.0) -> None:
        super().__init__()
        self.factor, self.least = factor, least

    def set_model(self, model: keras.Model) -> None:
        """Wrap the training step and the optimizers of `model`."""
        super().set_model(model)
        with tf.device("CPU"):
            began = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        train_step = model.train_step

        def timed_step(data: Any) -> Any:
            with tf.control_dependencies(tf.nest.flatten(data)):
                start = began.assign(tf.timestamp())
            with tf.control_dependencies([start]):
                return train_step(tf.nest.map_structure(tf.identity, data))

        def delayed(grads: list[Any], _: list[Any]) -> list[Any]:
            with tf.control_dependencies([g for g in grads if g is not None]):
                computing = tf.timestamp() - began
            slept = tf.numpy_function(self._sleep, [computing], tf.float64)
            with tf.control_dependencies([slept]):
                return [None if g is None else tf.nest.map_structure(tf.identity, g) for g in grads]

        model.train_step = timed_step
        gradients.intercept(model, delayed)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the training step and the optimizers."""
        self.model.__dict__.pop("train_step", None)
        gradients.release(self.model)

    def _sleep(self, computing: float) -> np.float64:
        seconds = np.float64(self.factor * max(computing, self.least) - computing)
        time.sleep(seconds)
        return seconds
