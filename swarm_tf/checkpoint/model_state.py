"""What a rank's training has in Keras and in Python: variables, optimizers, random states."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator

from swarm_tf import state
from swarm_tf.errors import UsageError


def capture(model: keras.Model) -> dict[str, Any]:
    """A copy of all that the model and its optimizers hold, and of the random states.

    Metrics are in it, so that the logs of an epoch go on; optimizers with slots, steps and rates;
    seed generators; and variables of TensorFlow in the model that Keras does not know, such as the
    memory of a Transformer-XL. Not in it: what `tf.random` functions count within themselves.
    """
    saved = variables(model)
    return {
        "variables": [_value(variable) for variable in saved],
        "shapes": state.shapes(saved),
        "metrics": [_value(variable) for variable in model.metrics_variables],
        "unknown_to_keras": [np.asarray(v.numpy()) for v in _unknown_to_keras(model)],
        "random": _random_states(),
    }


def restore(model: keras.Model, saved: Mapping[str, Any], *, own: bool = True) -> None:
    """The opposite of `capture`, but for what `restore_late` does.

    Args:
      own: whether this rank's own state was saved. The mean of other ranks' states has no random
        states that this rank may continue.

    Raises:
      UsageError: the model has other variables than the saved one.
    """
    state.build_optimizer(model)
    found = variables(model)
    check_same(state.shapes(found), saved["shapes"])
    common = {id(variable) for variable in state.all_variables(model)}  # no seed generators
    for variable, value in zip(found, saved["variables"], strict=True):
        if own or id(variable) in common:
            variable.assign(value)
    state.finalize_layers(model)
    if own:
        _set_random_states(saved["random"])


def restore_late(model: keras.Model, saved: Mapping[str, Any], *, within_epoch: bool) -> bool:
    """Restore what an epoch begins by resetting, or what exists only when the step was traced.

    Args:
      within_epoch: whether the epoch goes on, so that its metrics do; else they stay.

    Returns:
      whether all variables exist that Keras does not know.
    """
    if within_epoch:
        _assign(model.metrics_variables, saved["metrics"])
    return _assign(_unknown_to_keras(model), saved["unknown_to_keras"])


def _assign(variables: Sequence[Any], values: Sequence[npt.NDArray[Any]]) -> bool:
    """Assign the values, if there are as many variables, and of these shapes; whether it did."""
    fit = [tuple(v.shape) for v in variables] == [value.shape for value in values]
    if fit:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    return fit


def _unknown_to_keras(model: keras.Model) -> list[tf.Variable]:
    """TensorFlow's own variables and generators in attributes of the model and its layers."""
    found = [v for layer in model._flatten_layers() for v in _in_attribute(vars(layer))]
    return list({id(variable): variable for variable in found}.values())


def _in_attribute(value: Any) -> Iterator[tf.Variable]:
    if isinstance(value, tf.Variable):
        yield value
    elif isinstance(value, tf.random.Generator):
        yield value.state
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _in_attribute(item)


def variables(model: keras.Model) -> list[keras.Variable]:
    """The variables of the model (seed generators included) and of its optimizers."""
    every = [*model.variables, *state.all_variables(model)]
    return list({id(variable): variable for variable in every}.values())


def check_same(here: list[Any], saved: list[Any]) -> None:
    """Make sure that variables have the saved shapes and types, in the saved order.

    Args:
      here, saved: as `state.shapes` returns them; names may differ, since Keras numbers them.

    Raises:
      UsageError: names the first variable that differs.
    """
    for place in range(max(len(here), len(saved))):
        one, other = (_described(shapes, place) for shapes in (here, saved))
        if one[1] != other[1]:
            raise UsageError(
                f"the checkpoint is of another model: variable {place} is {' '.join(other)} in "
                f"it, and {' '.join(one)} here"
            )


def _described(shapes: list[Any], place: int) -> tuple[str, str]:
    if place >= len(shapes):
        return "not", "there"
    path, shape, dtype = shapes[place]
    return path, f"{dtype} {tuple(shape)}"


def _value(variable: keras.Variable) -> npt.NDArray[Any]:
    return np.asarray(variable.value.numpy())  # one copy; keras.ops would make three


def _random_states() -> dict[str, Any]:
    _, words, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [np.array(words), *rest],
        "keras": _value(global_seed_generator().state),
    }


def _set_random_states(saved: Mapping[str, Any]) -> None:
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(("MT19937", *saved["numpy"]))
    global_seed_generator().state.assign(saved["keras"])
