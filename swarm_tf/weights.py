"""Keras variables <-> the chunks of one flat vector.

Trained matrices and kernels come first, one after another, cut into equal chunks that are a whole
number of blocks long; the rest follows in chunks of its own: vectors (biases, scales), and what is
not trained itself (moving statistics, optimizer slots). The last chunk of each kind is filled up
with zeros.

Chunks let encoding, sending and decoding overlap. They have few shapes, so that each kernel is
compiled only a few times, and are small enough for the allocator to reuse their memory. The second
kind has chunks of its own because it travels exactly: differences of vectors are of another
magnitude than those of matrices, so one lattice step for both would drown the smaller ones in
noise; statistics and slots may have any magnitude, and noise would make second moments negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from swarm_tf.codec import BLOCK

CHUNK = 7 * 2**20
"""Most weights in a chunk."""


class FlatWeights:
    """The given variables as chunks: float32 [lengths[c]] each.

    A variable of fewer bits than float32 can't hold a small correction. The remainder that the cast
    loses is kept, added to the next correction, and part of the weight in all that is read here.

    Args:
      variables: Keras variables; other float types than float32 are cast on the way.
      chunk: most weights in a chunk.
      signed: variables that are not trained and may become negative. Any other one that is not
        trained stays non-negative, unless it has ever had a negative entry.

    Attributes:
      lengths: weights in each chunk.
      exact: which chunks travel exactly.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        chunk: int = CHUNK,
        signed: Iterable[keras.Variable] = (),
    ) -> None:
        matrices = [v for v in variables if _is_trained(v) and len(v.shape) > 1]
        among_them = {id(v) for v in matrices}
        exact = [v for v in variables if id(v) not in among_them]
        self.variables = [*matrices, *exact]
        self.sizes = [int(np.prod(v.shape)) for v in self.variables]
        self.total = sum(self.sizes)
        self.lengths: list[int] = []
        self._starts: list[int] = []
        for kind in (matrices, exact):
            sizes = [int(np.prod(v.shape)) for v in kind]
            self._starts += [sum(self.lengths) + s for s in np.cumsum([0, *sizes[:-1]])][
                : len(kind)
            ]
            self.lengths += _chunk_lengths(sum(sizes), chunk)
            if kind is matrices:
                first_exact = len(self.lengths)
        self.exact = frozenset(range(first_exact, len(self.lengths)))
        self._ends = np.cumsum(self.lengths).tolist()
        # By place in `variables`.
        self._remainders = {
            place: tf.Variable(tf.zeros(v.shape, tf.float32), trainable=False)
            for place, v in enumerate(self.variables)
            if tf.as_dtype(v.dtype).size < 4
        }
        self._float64 = [place for place, v in enumerate(self.variables) if v.dtype == "float64"]
        may_be_negative = {id(v) for v in signed}
        self._never_negative = {
            place: tf.Variable(True, trainable=False)
            for place, v in enumerate(self.variables)
            if not _is_trained(v) and id(v) not in may_be_negative
        }
        self._flatten = _Traced(self._flatten_graph)
        self._add = _Traced(self._add_graph)
        self._assign = _Traced(self._assign_graph)

    def shapes(self) -> list[tuple[str, tuple[int, ...], str]]:
        """(name, shape, dtype) of each variable."""
        return [(v.name, tuple(v.shape), str(v.dtype)) for v in self.variables]

    def flatten(self) -> list[tf.Tensor]:
        """A copy of the weights, in chunks."""
        return list(self._flatten())

    def add(self, corrections: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
        """Add a correction to each chunk and return a copy of the result.

        Corrections are float32 [lengths[c] / BLOCK, BLOCK], or None for nothing.

        What may not become negative (moving variances, second moments) keeps at least a tenth of
        its value: a correction that was computed some steps ago may exceed the value by now.
        """
        if all(c is None for c in corrections):
            return self.flatten()
        pairs = zip(corrections, self.lengths, strict=True)
        blocks = [_zeros(n) if c is None else tf.reshape(c, [-1, BLOCK]) for c, n in pairs]
        return list(self._add(blocks))

    def zeros(self) -> list[tf.Tensor]:
        """A correction of zero for each chunk."""
        return [_zeros(n) for n in self.lengths]

    def copy(self) -> list[npt.NDArray[Any]]:
        """A copy of the weights in their full precision, for `assign`.

        Returns:
          the chunks; if there are float64 weights, then also all of those: float64 [n].
        """
        copies = [np.array(chunk) for chunk in self.flatten()]
        wide = [np.asarray(self.variables[place].value).reshape(-1) for place in self._float64]
        return [*copies, np.concatenate(wide)] if wide else copies

    def assign(self, chunks: Sequence[tf.Tensor | npt.NDArray[Any]]) -> None:
        """Overwrite the variables with chunks, or with what `copy` returns."""
        self._assign([tf.convert_to_tensor(c) for c in chunks[: len(self.lengths)]])
        if len(chunks) > len(self.lengths):
            for place, value in self._split_wide(np.asarray(chunks[-1])):
                self.variables[place].assign(value)

    def state(self) -> dict[str, Any]:
        """What these weights have besides the variables' values, for a checkpoint."""
        return {
            "remainders": [np.array(rest) for rest in self._remainders.values()],
            "never_negative": [bool(flag) for flag in self._never_negative.values()],
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""
        for kept, values in (
            (self._remainders, saved["remainders"]),
            (self._never_negative, saved["never_negative"]),
        ):
            for variable, value in zip(kept.values(), values, strict=True):
                variable.assign(value)

    def split(self, chunks: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """What `copy` returns, as one array for each of `variables`, in its shape."""
        flat = np.concatenate([np.zeros(0, np.float32), *chunks[: len(self.lengths)]])
        parts = zip(self.variables, self._starts, self.sizes, strict=True)
        arrays = [flat[start : start + size].reshape(v.shape) for v, start, size in parts]
        if self._float64:
            for place, value in self._split_wide(chunks[-1]):
                arrays[place] = value
        return arrays

    def _split_wide(self, flat: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The float64 weights, by place in `variables`."""
        ends = np.cumsum([self.sizes[place] for place in self._float64])
        for place, part in zip(self._float64, np.split(flat, ends[:-1]), strict=True):
            yield place, part.reshape(self.variables[place].shape)

    def _value(self, place: int) -> tf.Tensor:
        """A weight plus its remainder: float32 or float64, in its shape."""
        value: Any = self.variables[place].value
        if place in self._remainders:
            return tf.cast(value, tf.float32) + self._remainders[place]
        return tf.convert_to_tensor(value)

    def _set(self, place: int, wanted: tf.Tensor) -> list[tf.Operation]:
        """Set a weight to `wanted`, and keep the remainder that its type can't hold."""
        value: Any = self.variables[place].value
        held = tf.cast(wanted, value.dtype)
        updates = [value.assign(held)]
        if place in self._remainders:
            rest = wanted - tf.cast(held, tf.float32)
            updates.append(self._remainders[place].assign(rest))
        return updates

    def _flatten_graph(self) -> list[tf.Tensor]:
        values = [tf.cast(self._value(place), tf.float32) for place in range(len(self.variables))]
        flat = [tf.reshape(value, [-1]) for value in values]
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
        updates: list[tf.Operation] = []
        flat = [tf.reshape(c, [-1]) for c in corrections]
        for place, correction in enumerate(self._split(flat)):
            value: Any = self.variables[place].value
            if place not in self._never_negative and place not in self._remainders:
                updates.append(value.assign_add(tf.cast(correction, value.dtype)))
                continue
            wanted = self._value(place)
            wanted += tf.cast(correction, wanted.dtype)
            if place in self._never_negative:
                never = self._never_negative[place]
                never = never.assign(never & tf.reduce_all(value >= 0))
                lowest = 0.1 * tf.cast(value, wanted.dtype)
                wanted = tf.where(never, tf.maximum(wanted, lowest), wanted)
            updates += self._set(place, wanted)
        with tf.control_dependencies(updates):
            return self._flatten_graph()

    def _assign_graph(self, chunks: list[tf.Tensor]) -> list[tf.Tensor]:
        for place, tensor in enumerate(self._split(chunks)):
            if self.variables[place].dtype == "float64":
                tensor = tf.cast(tensor, tf.float64)
            self._set(place, tensor)
        return []


class _Traced:
    """A function compiled once, at its first call.

    A plain `tf.function` would warn of retracing when a program trains often, since each training
    has functions of its own.
    """

    def __init__(self, function: Callable[..., list[tf.Tensor]]) -> None:
        self._function = tf.function(function, autograph=False)
        self._concrete: Any = None

    def __call__(self, *arguments: Any) -> list[tf.Tensor]:
        if self._concrete is None:
            self._concrete = self._function.get_concrete_function(*arguments)
        result: list[tf.Tensor] = self._concrete(*arguments)
        return result


def _is_trained(variable: keras.Variable) -> bool:
    # Float8 scales are "trainable", but overwritten with their gradient.
    return bool(variable.trainable) and not getattr(variable, "overwrite_with_gradient", False)


def _zeros(length: int) -> tf.Tensor:
    return tf.zeros([length // BLOCK, BLOCK])


def _chunk_lengths(total: int, most: int) -> list[int]:
    """Equal chunks of whole blocks that hold `total` weights."""
    if total == 0:
        return []
    count = -(-total // most)
    return [-(-total // (count * BLOCK)) * BLOCK] * count


def _part(flat: tf.Tensor, start: int, stop: int, size: int) -> tf.Tensor:
    return flat if (start, stop) == (0, size) else flat[start:stop]
