"""The state of a training, by role: what is averaged, what is made equal, what stays local.

    trained       trainable weights                                       averaged
    statistics    what layers update themselves: moving means, variances  averaged, if asked for
    slots         what optimizers keep: momentum, second moments          averaged, if asked for
    the rest      frozen weights, step counts, learning rates, int8       made equal at the start
    states of seed generators and of stateful RNNs                        stay local
    vocabularies and the like, which are no variables                     compared at the start

A role follows from what holds the variable, not from its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swarm_tf.errors import UsageError


def optimizers(model: keras.Model) -> dict[str, keras.Optimizer]:
    """The optimizers that `model` or one of its layers holds, by attribute: {"optimizer": ...}.

    An optimizer that another one wraps (as LossScaleOptimizer does) is not listed by itself.
    """
    found: dict[int, tuple[str, keras.Optimizer]] = {}
    for number, layer in enumerate(model._flatten_layers()):
        prefix = "" if number == 0 else f"layer {number}: "
        attributes = vars(layer)
        # The compiled one first; last the private lists, which hold all of them again.
        for name in sorted(attributes, key=lambda name: (name != "optimizer", name[0] == "_")):
            for key, item in _members(name, attributes[name]):
                if isinstance(item, keras.Optimizer):
                    found.setdefault(id(item), (prefix + key, item))
    inner = {id(part) for _, one in found.values() for part in parts(one)[1:]}
    return {name: one for key, (name, one) in found.items() if key not in inner}


def parts(optimizer: keras.Optimizer) -> list[keras.Optimizer]:
    """The optimizer itself and those that it wraps."""
    found = [optimizer]
    for name, value in vars(optimizer).items():
        for _, item in _members(name, value):
            if isinstance(item, keras.Optimizer):
                found += [part for part in parts(item) if part not in found]
    return found


def _members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield name, value
    if isinstance(value, list | tuple):
        yield from ((f"{name}[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", item) for key, item in value.items())


def steps_taken(model: keras.Model) -> int:
    """The most steps that an optimizer of `model` has taken; 0 without an optimizer.

    With gradient accumulation every batch counts.
    """
    owned = optimizers(model).values()
    counts = [part._iterations for optimizer in owned for part in parts(optimizer)]
    return max((int(count.numpy()) for count in counts), default=0)


def is_built(model: keras.Model) -> bool:
    """Whether every layer has its variables.

    A model with a `train_step` of its own and no `call`, such as a GAN, is itself never built.
    """
    layers = model._flatten_layers(include_self=False)
    uncalled = type(model).call is keras.Model.call
    return (model.built or (uncalled and bool(layers))) and all(layer.built for layer in layers)


# What is averaged.


def averaged_variables(
    model: keras.Model, *, statistics: bool = True, optimizer: bool = False
) -> list[keras.Variable]:
    """The variables of `model` that ranks average, in Keras' order.

    Args:
      statistics: also what trainable layers update themselves, such as BatchNormalization's
        moving statistics. Seed generators hold integers and are never averaged.
      optimizer: also the slots of every optimizer that is built (momentum, Adam's moments), but
        not step counts, learning rates and accumulated gradients. This builds the compiled
        optimizer.
    """
    variables = list(model.trainable_variables)
    if statistics:
        variables += moving_statistics(model)
    if optimizer:
        build_optimizer(model)
        variables += slots(model)
    unique = {id(v): v for v in variables if _is_float(v)}
    return list(unique.values())


def check_averageable(model: keras.Model) -> None:
    """Refuse a model that has nothing to average, or what can't be averaged.

    Raises:
      UsageError: there is no trainable weight, or one is complex.
    """
    trained = model.trainable_variables
    for variable in trained:
        if tf.as_dtype(variable.dtype).is_complex:
            raise UsageError(
                f"the trainable weight {variable.path} is {variable.dtype}; ranks average real "
                "numbers only: hold its real and imaginary part in two weights"
            )
    if not any(_is_float(v) and np.prod(v.shape) for v in trained):
        raise UsageError(
            f"the model {model.name} has no trainable weights, so there is nothing to average"
        )


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """The float state of trainable layers that is not trained itself."""
    layers = [layer for layer in model._flatten_layers(include_self=True) if layer.trainable]
    return [v for layer in layers for v in layer._non_trainable_variables if _is_float(v)]


def build_optimizer(model: keras.Model) -> None:
    """Create the slots of the compiled optimizer, which Keras creates at the first step only."""
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)


def slots(model: keras.Model) -> list[keras.Variable]:
    """The float slots of the optimizers of `model`, such as momentum."""
    found = []
    for optimizer in optimizers(model).values():
        local = set()
        for part in parts(optimizer):
            local |= {id(part._iterations), id(part._learning_rate)}
            local |= {id(v) for v in getattr(part, "_accumulated_gradients", None) or []}
            if isinstance(part, keras.optimizers.LossScaleOptimizer):
                local |= {id(v) for v in part._variables}  # each rank's own scale
        found += [v for v in optimizer.variables if id(v) not in local and _is_float(v)]
    return found


def _is_float(variable: keras.Variable) -> bool:
    return bool(tf.as_dtype(variable.dtype).is_floating)


# What may not become negative.


def signed_variables(model: keras.Model, *, slots: bool) -> list[keras.Variable]:
    """Statistics and slots that may be negative, as far as that can be known before training.

    Moving means of BatchNormalization; and with `slots` those that become negative when a copy
    of their optimizer is tried on a weight of a few numbers.
    """
    known = [
        layer.moving_mean
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built
    ]
    every = [part for one in optimizers(model).values() for part in parts(one)]
    for optimizer in every if slots else ():
        if not optimizer.built:
            continue
        for attribute in _signed_slots(optimizer):
            known += _variables_of(getattr(optimizer, attribute, None))
    return known


def _signed_slots(optimizer: keras.Optimizer) -> list[str]:
    """Attributes of the optimizer whose slots become negative on gradients of either sign."""
    try:
        trial = type(optimizer).from_config(optimizer.get_config())
        start = np.array([[1.0, -1.0], [-2.0, 2.0]], np.float32)
        weight = keras.Variable(start)
        trial.build([weight])
        for sign in (1.0, -1.0, -1.0, 1.0):
            trial.apply([tf.constant(sign * start)], [weight])
    except Exception:  # a user's own optimizer that can't be copied: then nothing is known
        return []
    # Keras' own lists of all variables of an optimizer, and of the weights that it trains.
    whole = ("_variables", "_trainable_variables")
    return [
        attribute
        for attribute, value in vars(trial).items()
        if attribute not in whole and any(np.any(np.asarray(v) < 0) for v in _variables_of(value))
    ]


def _variables_of(value: Any) -> list[keras.Variable]:
    """The variables in an attribute of an optimizer: a list, with None for weights without slot."""
    if not isinstance(value, list | tuple):
        value = [value]
    return [v for v in value if isinstance(v, keras.Variable) and _is_float(v)]


def reset_slots(model: keras.Model) -> None:
    """Give every optimizer of `model` the slots of a new one; step counts and rates stay."""
    for optimizer in (part for one in optimizers(model).values() for part in parts(one)):
        if not optimizer.built or not hasattr(optimizer, "_trainable_variables"):
            continue
        if len(parts(optimizer)) > 1:
            continue  # the optimizers that it wraps are reset by themselves
        fresh = type(optimizer).from_config(optimizer.get_config())
        fresh.build(optimizer._trainable_variables)
        kept = {id(optimizer._iterations), id(optimizer._learning_rate)}
        for old, new in zip(optimizer.variables, fresh.variables, strict=True):
            if id(old) not in kept:
                old.assign(new)


# What is made equal at the start.


def all_variables(model: keras.Model) -> list[keras.Variable]:
    """Every variable that ranks start with in common: weights, and the optimizers' variables."""
    variables = list(model.weights)
    for optimizer in optimizers(model).values():
        variables += optimizer.variables
    return list({id(v): v for v in variables}.values())


def shapes(variables: Iterable[keras.Variable]) -> list[tuple[str, list[int], str]]:
    """(path, shape, dtype) of each variable."""
    return [(v.path, list(v.shape), str(v.dtype)) for v in variables]


def digest(variables: Iterable[keras.Variable]) -> str:
    """A digest of the values of the variables: 32 hexadecimal digits."""
    whole = hashlib.blake2b(digest_size=16)
    for variable in variables:
        whole.update(as_bytes(variable).data)
    return whole.hexdigest()


def as_bytes(variable: keras.Variable) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The value in its own type, read-only: uint8 [bytes]."""
    value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value))
    return value.reshape(-1).view(np.uint8)


def set_bytes(variable: keras.Variable, value: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """The opposite of `as_bytes`."""
    dtype = tf.as_dtype(variable.value.dtype).as_numpy_dtype
    variable.assign(value.view(dtype).reshape(variable.shape))


def finalize_layers(model: keras.Model) -> None:
    """Recompute what Normalization derives from its variables, after those were set."""
    layers = [
        layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Normalization)
    ]
    for layer in layers:
        layer.finalize_state()
    if layers:  # traced functions hold the old numbers
        model.test_function = model.predict_function = None
        if model.train_function is not None:
            model.make_train_function(force=True)


def vocabularies(model: keras.Model) -> dict[str, str]:
    """Digests, by layer, of what layers have learned that is no variable.

    Vocabularies of lookups and TextVectorization, and the bounds of Discretization.
    """
    found = {}
    for number, layer in enumerate(model._flatten_layers()):
        learned: list[Any] = []
        if callable(getattr(layer, "get_vocabulary", None)):
            learned = [str(word) for word in layer.get_vocabulary()]
            weights = getattr(layer, "idf_weights_const", None)
            learned += [] if weights is None else np.asarray(weights).tolist()
        elif isinstance(layer, keras.layers.Discretization):
            learned = [float(bound) for bound in layer.bin_boundaries or []]
        if learned:
            text = json.dumps(learned).encode()
            name = f"layer {number} ({type(layer).__name__})"
            found[name] = hashlib.blake2b(text, digest_size=8).hexdigest()
    return found
