"""From tokenized sentence pairs to the tf.data pipelines of one rank."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from data import AHEAD
from data.partition import Indices
from data.text.buckets import Batch, Lengths
from data.text.tokens import Sentences
from data.text.vocabulary import BOS, PADDING


@dataclass(frozen=True)
class Pairs:
    """A split. What is dealt as one, a unit, is a pair, or a document of `segments` pairs.

    Attributes:
      source, target: sentence i of one translates sentence i of the other.
      segments: in a document; None where every pair stands for itself.
    """

    source: Sentences
    target: Sentences
    segments: int | None

    def longest(self) -> Lengths:
        """[units], tokens of the longest sentence of each, EOS included."""
        both = np.maximum(self.source.lengths, self.target.lengths)
        return both.reshape(-1, self.segments or 1).max(axis=1)

    def numbers(self, units: Indices) -> Indices:
        """[segments, len(units)], the pairs of the units in the order of use."""
        length = self.segments or 1
        return units * length + np.arange(length)[:, np.newaxis]

    def dataset(
        self, batches: Callable[[], Iterator[Batch]], widths: Sequence[int], rows: int | None
    ) -> tf.data.Dataset:
        """Batches as of `translation.Translation`; of documents, all first segments, all second...

        Args:
          batches: a call gives the units and widths of all batches afresh.
          widths: that batches may have, rising.
          rows: of every batch; where units are too few, the last ones are padding. None: as many
            as there are units.
        """
        ids = tf.TensorSpec([rows, None], tf.int32)
        keys = {"source": ids, "labels": ids}
        if self.segments:
            keys["reset"] = tf.TensorSpec([rows], tf.bool)
        filled = tf.data.Dataset.from_generator(
            lambda: self._filled(batches(), widths, rows), output_signature=keys
        )
        return filled.map(_shifted).prefetch(AHEAD)

    def _filled(
        self, batches: Iterator[Batch], widths: Sequence[int], rows: int | None
    ) -> Iterator[dict[str, np.ndarray]]:
        for width, units in batches:
            for segment, pairs in enumerate(self.numbers(units)):
                ids = np.full((2, rows or len(pairs), width), PADDING, np.int32)
                ids[0, : len(pairs)] = self.source.rows(pairs, width)
                ids[1, : len(pairs)] = self.target.rows(pairs, width)
                # Sentences of a document differ, so most segments are narrower than the widest.
                used = np.count_nonzero((ids != PADDING).any(axis=(0, 1)))
                source, labels = ids[:, :, : widths[np.searchsorted(widths, used)]]
                batch = {"source": source, "labels": labels}
                if self.segments:
                    batch["reset"] = np.full(len(labels), segment == 0)
                yield batch


def _shifted(batch: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Inputs, labels and weights: each label is predicted from the labels before it."""
    labels = batch.pop("labels")
    real = labels != PADDING
    before = tf.pad(labels[:, :-1], [[0, 0], [1, 0]], constant_values=BOS)
    # Without the where, EOS would be an input at a position that is padding.
    target = tf.where(real, before, PADDING)
    return {**batch, "target": target}, labels, tf.cast(real, tf.float32)
