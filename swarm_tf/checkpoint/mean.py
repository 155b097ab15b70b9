"""The mean of the states in checkpoints, over ranks that each have some of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from swarm_tf.checkpoint.store import State, dtype_of
from swarm_tf.cluster.world import FIRST_SECONDS, gather_over
from swarm_tf.transport import collectives
from swarm_tf.transport.base import Transport

_WHAT = "the mean of checkpoints"
_SHAPE = "shape"  # the key of an array's outline
_KINDS = ("float32", "float64")
_MISSING = object()


def mean_of(states: Sequence[State], transport: Transport | None) -> dict[str, Any]:
    """The mean of all ranks' states; each rank may have none, one or several.

    Arrays become their mean, rounded where they hold whole numbers. All else is that of the first
    state. What not all states have, in one shape and type, is left out.

    Returns:
      the same on every rank.

    Raises:
      ValueError: no rank has a state.
    """
    outlines = [_outline(state) for state in states]
    every = [one for some in gather_over(transport, outlines, _WHAT, FIRST_SECONDS) for one in some]
    if not every:
        raise ValueError("no rank has a state")
    common = functools.reduce(_common, every)
    sizes = list(_sizes(common))
    flat: dict[str, npt.NDArray[Any]] = {
        kind: np.zeros(sum(n for n, k in sizes if k == kind), kind) for kind in _KINDS
    }
    parts = [flat[kind][end - n : end] for (n, kind), end in zip(sizes, _ends(sizes), strict=True)]
    for state in states:
        for part, numbers in zip(parts, _numbers(state, common), strict=True):
            part += numbers
    if transport is not None:
        collectives.average(transport, [one for one in flat.values() if one.size], FIRST_SECONDS)
        for one in flat.values():
            one *= transport.size
    for one in flat.values():
        one /= len(every)
    mean: dict[str, Any] = _filled(common, iter(parts))
    return mean


def _outline(value: Any) -> Any:
    """`value` with shapes in place of its arrays: JSON values."""
    if isinstance(value, Mapping):
        return {key: _outline(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_outline(item) for item in value]
    if isinstance(value, np.ndarray):
        return {_SHAPE: list(value.shape), "dtype": value.dtype.name}
    return value.item() if isinstance(value, np.generic) else value


def _common(first: Any, other: Any) -> Any:
    """What two outlines have in common; other values are those of the first."""
    if _is_array(first) or _is_array(other):
        return first if first == other else _MISSING
    if isinstance(first, dict) and isinstance(other, dict):
        both = {key: _common(first[key], other[key]) for key in first if key in other}
        return {key: item for key, item in both.items() if item is not _MISSING}
    if isinstance(first, list) and isinstance(other, list):
        if len(first) != len(other):
            return _MISSING
        items = [_common(one, two) for one, two in zip(first, other, strict=True)]
        return _MISSING if _MISSING in items else items
    return first


def _is_array(outline: Any) -> bool:
    return isinstance(outline, dict) and _SHAPE in outline


def _sizes(outline: Any) -> Iterator[tuple[int, str]]:
    """How many numbers each array has, and the type of their sum."""
    if _is_array(outline):
        per_item = 2 if "complex" in outline["dtype"] else 1
        yield per_item * math.prod(outline[_SHAPE]), _type_of_sum(outline["dtype"])
    elif isinstance(outline, dict | list):
        for item in outline.values() if isinstance(outline, dict) else outline:
            yield from _sizes(item)


def _ends(sizes: list[tuple[int, str]]) -> Iterator[int]:
    """Where each array ends in the flat sum of its type."""
    ends = dict.fromkeys(_KINDS, 0)
    for size, kind in sizes:
        ends[kind] += size
        yield ends[kind]


def _type_of_sum(dtype: str) -> str:
    """float32 for itself and narrower floats; float64 holds whole numbers up to 2^53."""
    return "float32" if "float" in dtype and dtype != "float64" else "float64"


def _numbers(value: Any, outline: Any) -> Iterator[npt.NDArray[Any]]:
    """The arrays of `value` that are in `outline`, flat, in the type of their sum."""
    if _is_array(outline):
        if "complex" in outline["dtype"]:
            value = np.stack([value.real, value.imag])
        yield value.astype(_type_of_sum(outline["dtype"])).ravel()
    elif isinstance(outline, dict):
        for key, item in outline.items():
            yield from _numbers(value[key], item)
    elif isinstance(outline, list):
        for one, item in zip(value, outline, strict=True):
            yield from _numbers(one, item)


def _filled(outline: Any, parts: Iterator[npt.NDArray[Any]]) -> Any:
    """The outline with arrays in their places, each in its own type."""
    if isinstance(outline, dict) and not _is_array(outline):
        return {key: _filled(item, parts) for key, item in outline.items()}
    if isinstance(outline, list):
        return [_filled(item, parts) for item in outline]
    if not _is_array(outline):
        return outline
    mean, name = next(parts), outline["dtype"]
    if "complex" in name:
        real, imaginary = np.split(mean, 2)
        mean = real + 1j * imaginary
    elif "float" not in name:
        mean = np.rint(mean)
    return mean.astype(dtype_of(name)).reshape(outline[_SHAPE])
