"""Evaluates models, and estimates BatchNormalization statistics again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from swarm_tf.cluster import signals


class _StopOnSignal(keras.callbacks.Callback):  # type: ignore[misc]
    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.stop_evaluating = signals.received() is not None


def evaluate(model: keras.Model, dataset: tf.data.Dataset) -> dict[str, float]:
    """Loss and metrics of a compiled model over `dataset`, by name; empty after a signal."""
    results = model.evaluate(dataset, verbose=0, return_dict=True, callbacks=[_StopOnSignal()])
    if signals.received():
        return {}
    return {name: float(value) for name, value in results.items()}


def recalibrate(model: keras.Model, batches: Iterable[Any]) -> None:
    """Replace the moving statistics of BatchNormalization by their mean over `batches`.

    Needed for a mean of models whose statistics were not averaged with the weights.

    Args:
      batches: training batches (inputs, ...).
    """
    layers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in layers]
    for earlier, (inputs, *_) in enumerate(batches):
        for layer in layers:
            layer.momentum = earlier / (earlier + 1)  # gives the mean over all batches so far
        model(inputs, training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
