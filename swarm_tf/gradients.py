"""Gradients on their way from the backward pass to the optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from swarm_tf import state

Change = Callable[[list[Any], list[Any]], list[Any]]
"""Of gradients (tensors, tf.IndexedSlices or None) and their variables: what an optimizer gets."""


def intercept(model: keras.Model, change: Change) -> None:
    """From now on every optimizer that `model` holds gets what `change` makes of its gradients.

    Called again, the later `change` sees the gradients first.
    """
    for optimizer in state.optimizers(model).values():
        _intercept(optimizer, change)
    model.jit_compile = False  # Keras' choice on GPUs, but XLA can neither wait nor sleep
    model.train_function = None  # one traced before would go on as it was


def _intercept(optimizer: keras.Optimizer, change: Change) -> None:
    apply = optimizer.apply

    def apply_changed(grads: list[Any], trainable_variables: Any = None) -> None:
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        variables = trainable_variables or optimizer._trainable_variables
        apply(change(grads, variables), trainable_variables)

    optimizer.apply = apply_changed


def release(model: keras.Model) -> None:
    """The optimizers are ordinary ones again."""
    for optimizer in state.optimizers(model).values():
        optimizer.__dict__.pop("apply", None)
    model.train_function = None
