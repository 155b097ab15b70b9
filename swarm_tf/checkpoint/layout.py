"""Keras' file of a model's weights, without the weights: where in it each variable stands.

With it the weights of a checkpoint become a file for `model.load_weights`, without the model.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

_PLACE = "variable"  # the attribute with a variable's place in `model_state.variables`


def of(model: Any, variables: list[Any], without: list[Any]) -> bytes:
    """The layout of what `model.save_weights` writes: an HDF5 file with empty data sets.

    Needs memory for a copy of the weights.

    Args:
      variables: the model's, in the order of a checkpoint.
      without: parts of the model that are left out, such as its optimizer.

    Raises:
      ValueError: a data set is of no variable; a layer of the model saves something else.
    """
    import keras

    from swarm_tf import files

    # Each variable shows its place, as the bits of its numbers.
    shown = [(v, _numbered(place, v)) for place, v in enumerate(variables)]
    with keras.StatelessScope(state_mapping=shown):
        content = files.weights_of(model, without=without)
    places: dict[str, int] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            places[name] = _place(name, item)

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(note)
        return _copied(file, lambda name, item: (np.zeros(0), {_PLACE: places[name]}))


def filled(layout: bytes, values: Mapping[int, npt.NDArray[Any]]) -> bytes:
    """The file of weights, from a layout and the values by place."""

    with h5py.File(io.BytesIO(layout), "r") as file:
        return _copied(file, lambda _, item: (values[int(item.attrs[_PLACE])], {}))


def places(layout: bytes) -> list[int]:
    """The places of the variables that are in the file."""
    found: list[int] = []

    def note(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(int(item.attrs[_PLACE]))

    with h5py.File(io.BytesIO(layout), "r") as file:
        file.visititems(note)
    return found


def _numbered(place: int, variable: Any) -> Any:
    import tensorflow as tf

    dtype = tf.as_dtype(variable.dtype).as_numpy_dtype
    kind = np.dtype(f"u{np.dtype(dtype).itemsize}")
    if place > np.iinfo(kind).max:
        raise ValueError(f"there are too many variables for the type {variable.dtype}")
    with tf.device("CPU:0"):
        return tf.constant(np.full(variable.shape, place, kind).view(dtype))


def _place(name: str, item: Any) -> int:
    numbers = item[()].reshape(-1)
    bits = numbers.view(f"u{numbers.dtype.itemsize}") if numbers.size else np.zeros(0, np.uint8)
    if not bits.size or (bits != bits[0]).any():
        raise ValueError(f"{name} of the weights is no variable")
    return int(bits[0])


def _copied(
    file: Any, change: Callable[[str, Any], tuple[npt.NDArray[Any], dict[str, Any]]]
) -> bytes:
    """A copy of an HDF5 file with other data sets: change(name, data set) -> value, attributes."""
    into = io.BytesIO()

    def copy(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            value, more = change(name, item)
            made = copied.create_dataset(name, data=value)
        else:
            made, more = copied.require_group(name), {}
        for key, attribute in [*item.attrs.items(), *more.items()]:
            if key != _PLACE or more:
                made.attrs[key] = attribute

    with h5py.File(into, "w") as copied:
        for key, attribute in file.attrs.items():
            copied.attrs[key] = attribute
        file.visititems(copy)
    return into.getvalue()
