"""Keras variables <-> the chunks of one flat vector.

Matrices and kernels come first, one after another, cut into equal chunks that are a whole number
of blocks long; vectors (biases, scales, moving statistics) follow in chunks of their own. The last
chunk of each kind is filled up with zeros.

Chunks let encoding, wire and decoding overlap, have few shapes, so that each kernel is compiled
once, and stay small enough for the memory allocator to reuse. Vectors are apart because they are
few and travel exactly: their differences are of other sizes than those of the matrices, and one
lattice step for both would drown the smaller ones in noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from swarm_tf.codec import BLOCK

CHUNK = 7 * 2**20
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
        variables += moving_statistics(model)
    if optimizer:
        # What scales the loss in mixed precision keeps to itself how.
        optimizing = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if not model.optimizer.built:  # it would make its slots at the first step only
            model.optimizer.build(model.trainable_variables)
        slots = optimizing.variables
        own = {id(optimizing.iterations), id(optimizing._learning_rate)}
        variables += [v for v in slots if id(v) not in own and _is_float(v)]
    unique = {id(v): v for v in variables if _is_float(v)}
    return list(unique.values())


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """The float state of trainable layers that is not trained itself."""
    layers = [layer for layer in model._flatten_layers(include_self=True) if layer.trainable]
    return [v for layer in layers for v in layer._non_trainable_variables if _is_float(v)]


def _is_float(variable: keras.Variable) -> bool:
    return bool(tf.as_dtype(variable.dtype).is_floating)


class FlatWeights:
    """The given variables as chunks: float32 [lengths[c]] each.

    Args:
      variables: Keras variables; other float types than float32 are cast on the way.
      chunk: most weights in a chunk.

    Attributes:
      lengths: weights in each chunk.
      exact: which chunks hold vectors.
    """

    def __init__(self, variables: Sequence[keras.Variable], chunk: int = CHUNK) -> None:
        matrices = [v for v in variables if len(v.shape) > 1]
        vectors = [v for v in variables if len(v.shape) <= 1]
        self.variables = [*matrices, *vectors]
        self.sizes = [int(np.prod(v.shape)) for v in self.variables]
        self.total = sum(self.sizes)
        self.lengths: list[int] = []
        self._starts: list[int] = []
        for kind in (matrices, vectors):
            sizes = [int(np.prod(v.shape)) for v in kind]
            self._starts += [sum(self.lengths) + s for s in np.cumsum([0, *sizes[:-1]])][
                : len(kind)
            ]
            self.lengths += _chunk_lengths(sum(sizes), chunk)
            if kind is matrices:
                first_vector = len(self.lengths)
        self.exact = frozenset(range(first_vector, len(self.lengths)))
        self._ends = np.cumsum(self.lengths).tolist()
        self._gather = tf.function(self._gather_graph, autograph=False)
        self._add = tf.function(self._add_graph, autograph=False)
        self._assign = tf.function(self._assign_graph, autograph=False)

    def shapes(self) -> list[tuple[str, tuple[int, ...], str]]:
        """(name, shape, dtype) of each variable: what two nodes must have in common."""
        return [(v.name, tuple(v.shape), str(v.dtype)) for v in self.variables]

    def gather(self) -> list[tf.Tensor]:
        """A copy of the weights, in chunks."""
        return list(self._gather())

    def add(self, corrections: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
        """Add a correction to each chunk and return a copy of the result.

        Corrections are float32 [lengths[c] / BLOCK, BLOCK], or None for nothing.

        A moving variance is not allowed below a tenth of its value, since a correction that was
        computed some steps ago may exceed it by now.
        """
        if all(c is None for c in corrections):
            return self.gather()
        pairs = zip(corrections, self.lengths, strict=True)
        return list(self._add([_nothing(n) if c is None else c for c, n in pairs]))

    def zeros(self) -> list[tf.Tensor]:
        """A correction of nothing, for each chunk."""
        return [_nothing(n) for n in self.lengths]

    def assign(self, chunks: Sequence[tf.Tensor | npt.NDArray[np.float32]]) -> None:
        """Overwrite the variables."""
        self._assign([tf.convert_to_tensor(c) for c in chunks])

    def _gather_graph(self) -> list[tf.Tensor]:
        flat = [tf.reshape(tf.cast(v.value, tf.float32), [-1]) for v in self.variables]
        chunks = []
        for low, high in self._bounds():
            parts, end = [], low
            for f, start, size in zip(flat, self._starts, self.sizes, strict=True):
                if start < high and start + size > low:
                    parts.append(_part(f, max(low - start, 0), min(high - start, size), size))
                    end = min(start + size, high)
            if end < high:
                parts.append(tf.zeros([high - end]))
            # Always a copy: a lone variable must not share memory with its chunk.
            chunks.append(tf.concat(parts, axis=0) if len(parts) > 1 else parts[0] + 0.0)
        return chunks

    def _bounds(self) -> list[tuple[int, int]]:
        return [(end - n, end) for end, n in zip(self._ends, self.lengths, strict=True)]

    def _split(self, chunks: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Chunks -> one tensor of each variable's shape."""
        tensors = []
        for variable, start, size in zip(self.variables, self._starts, self.sizes, strict=True):
            pieces = [
                _part(chunk, max(start - low, 0), min(start + size, high) - low, high - low)
                for chunk, (low, high) in zip(chunks, self._bounds(), strict=True)
                if start < high and start + size > low
            ]
            flat = tf.concat(pieces or [[]], axis=0) if len(pieces) != 1 else pieces[0]
            tensors.append(tf.reshape(flat, variable.shape))
        return tensors

    def _add_graph(self, corrections: list[tf.Tensor]) -> list[tf.Tensor]:
        updates = []
        flat = [tf.reshape(c, [-1]) for c in corrections]
        for variable, correction in zip(self.variables, self._split(flat), strict=True):
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


def _nothing(length: int) -> tf.Tensor:
    return tf.zeros([length // BLOCK, BLOCK])


def _chunk_lengths(total: int, most: int) -> list[int]:
    """Equal chunks of whole blocks that hold `total` weights."""
    if total == 0:
        return []
    count = -(-total // most)
    return [-(-total // (count * BLOCK)) * BLOCK] * count


def _part(flat: tf.Tensor, start: int, stop: int, size: int) -> tf.Tensor:
    return flat if (start, stop) == (0, size) else flat[start:stop]
