"""Changes gradients between the backward pass and the optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from swarm_tf import state

Change = Callable[[list[Any], list[Any]], list[Any]]
"""From gradients (tensors, tf.IndexedSlices or None) and their variables to those to apply."""


def intercept(model: keras.Model, change: Change) -> None:
    """From now on every optimizer of `model` applies what `change` returns for its gradients.

    If called twice, the later `change` gets the gradients first.
    """
    for optimizer in state.optimizers(model).values():
        _intercept(optimizer, change)
    model.jit_compile = False  # Keras would choose XLA on GPUs, but XLA can't wait for other ranks
    model.train_function = None  # one that is traced already would ignore the change


def _intercept(optimizer: keras.Optimizer, change: Change) -> None:
    apply = optimizer.apply

    def apply_changed(grads: list[Any], trainable_variables: Any = None) -> None:
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        variables = trainable_variables or optimizer._trainable_variables
        apply(change(grads, variables), trainable_variables)

    optimizer.apply = apply_changed


def release(model: keras.Model) -> None:
    """Undo `intercept`."""
    for optimizer in state.optimizers(model).values():
        optimizer.__dict__.pop("apply", None)
    model.train_function = None
