"""Keras variables <-> the chunks of one flat vector.

The float weights of a model, one after another, are cut into equal chunks that are a whole number
of blocks long; the last is filled up with zeros. Chunks let encoding, wire and decoding overlap,
have one shape, so that each kernel is compiled once, and stay small enough for the memory
allocator to reuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from swarm_tf.codec import BLOCK

CHUNK = 2**21
"""Most weights in a chunk."""


def averaged_variables(
    model: keras.Model, *, statistics: bool = True, optimizer: bool = False
) -> list[keras.Variable]:
    """The variables of `model` that the swarm averages, in Keras' order.

    Args:
      statistics: also the float state of trainable layers that is not trained itself: the moving
        statistics of BatchNormalization. Seed generators hold integers and never travel.
      optimizer: also the optimizer's slots (momentum, Adam's moments), but not its step count or
        learning rate.
    """
    variables = list(model.trainable_variables)
    if statistics:
        for layer in model._flatten_layers(include_self=True):
            if layer.trainable:
                variables += [v for v in layer._non_trainable_variables if _is_float(v)]
    if optimizer:
        slots = model.optimizer.variables
        own = {id(model.optimizer.iterations), id(model.optimizer._learning_rate)}
        variables += [v for v in slots if id(v) not in own and _is_float(v)]
    unique = {id(v): v for v in variables if _is_float(v)}
    return list(unique.values())


def _is_float(variable: keras.Variable) -> bool:
    return bool(tf.as_dtype(variable.dtype).is_floating)


class FlatWeights:
    """The given variables as chunks: float32 [chunk_length] each.

    Args:
      variables: Keras variables; other float types than float32 are cast on the way.
      chunk: most weights in a chunk.
    """

    def __init__(self, variables: Sequence[keras.Variable], chunk: int = CHUNK) -> None:
        self.variables = list(variables)
        self.sizes = [int(np.prod(v.shape)) for v in variables]
        self.total = sum(self.sizes)
        count = max(1, -(-self.total // chunk))
        self.chunk_length = max(1, -(-self.total // (count * BLOCK))) * BLOCK
        self.lengths = [self.chunk_length] * count
        self._starts = np.cumsum([0, *self.sizes[:-1]]).tolist() if variables else []
        self._zeros = tf.zeros([self.chunk_length])
        self._gather = tf.function(self._gather_graph, autograph=False)
        self._add = tf.function(self._add_graph, autograph=False)
        self._assign = tf.function(self._assign_graph, autograph=False)

    def shapes(self) -> list[tuple[str, tuple[int, ...], str]]:
        """(path, shape, dtype) of each variable: what two nodes must have in common."""
        return [(v.path, tuple(v.shape), str(v.dtype)) for v in self.variables]

    def gather(self) -> list[tf.Tensor]:
        """A copy of the weights, in chunks."""
        return list(self._gather())

    def add(self, corrections: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
        """Add a correction to each chunk (None: nothing) and return a copy of the result.

        A moving variance is not allowed below a tenth of its value, since a correction that was
        computed some steps ago may exceed it by now.
        """
        if all(c is None for c in corrections):
            return self.gather()
        return list(self._add([self._zeros if c is None else c for c in corrections]))

    def assign(self, chunks: Sequence[tf.Tensor | npt.NDArray[np.float32]]) -> None:
        """Overwrite the variables."""
        self._assign([tf.convert_to_tensor(c) for c in chunks])

    def _gather_graph(self) -> list[tf.Tensor]:
        flat = [tf.reshape(tf.cast(v.value, tf.float32), [-1]) for v in self.variables]
        chunks = []
        for c in range(len(self.lengths)):
            low, high = c * self.chunk_length, (c + 1) * self.chunk_length
            parts = [
                _part(f, max(low - start, 0), min(high - start, size), size)
                for f, start, size in zip(flat, self._starts, self.sizes, strict=True)
                if start < high and start + size > low
            ]
            missing = high - max(self.total, low)
            if missing > 0:
                parts.append(tf.zeros([min(missing, self.chunk_length)]))
            # Always a copy: a lone variable must not share memory with its chunk.
            chunks.append(tf.concat(parts, axis=0) if len(parts) > 1 else parts[0] + 0.0)
        return chunks

    def _split(self, chunks: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Chunks -> one tensor of each variable's shape."""
        n, tensors = self.chunk_length, []
        for variable, start, size in zip(self.variables, self._starts, self.sizes, strict=True):
            pieces = [
                _part(chunks[c], max(start - c * n, 0), min(start + size - c * n, n), n)
                for c in range(start // n, (start + max(size, 1) - 1) // n + 1)
            ]
            flat = pieces[0] if len(pieces) == 1 else tf.concat(pieces, axis=0)
            tensors.append(tf.reshape(flat, variable.shape))
        return tensors

    def _add_graph(self, corrections: list[tf.Tensor]) -> list[tf.Tensor]:
        updates = []
        for variable, correction in zip(self.variables, self._split(corrections), strict=True):
            value: Any = variable.value
            correction = tf.cast(correction, value.dtype)
            if variable.name == "moving_variance":
                updates.append(value.assign(tf.maximum(value + correction, 0.1 * value)))
            else:
                updates.append(value.assign_add(correction))
        with tf.control_dependencies(updates):
            return self._gather_graph()

    def _assign_graph(self, chunks: list[tf.Tensor]) -> None:
        for variable, tensor in zip(self.variables, self._split(chunks), strict=True):
            variable.value.assign(tf.cast(tensor, variable.value.dtype))


def _part(flat: tf.Tensor, start: int, stop: int, size: int) -> tf.Tensor:
    return flat if (start, stop) == (0, size) else flat[start:stop]
