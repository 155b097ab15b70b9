"""Gradients on their way from the backward pass to the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def intercept(model: keras.Model, change: Callable[[list[Any], list[Any]], list[Any]]) -> None:
    """From now on the optimizer of `model` gets what `change` makes of its gradients.

    Called again, the later `change` sees the gradients first.

    Args:
      change: of gradients (tensors, tf.IndexedSlices or None) and their variables.
    """
    optimizer = model.optimizer
    apply = optimizer.apply

    def apply_changed(grads: list[Any], trainable_variables: Any = None) -> None:
        variables = trainable_variables or optimizer._trainable_variables
        apply(change(grads, variables), trainable_variables)

    optimizer.apply = apply_changed
    model.jit_compile = False  # Keras' choice on GPUs, but XLA can neither wait nor sleep
    model.train_function = None  # one traced before would go on as it was


def release(model: keras.Model) -> None:
    """The optimizer is an ordinary one again."""
    model.optimizer.__dict__.pop("apply", None)
    model.train_function = None
