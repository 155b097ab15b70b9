"""The tf.data pipelines of one rank, from tokenized sentence pairs."""

import itertools
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
    """A split, divided into units: a unit is a pair, or a document of `segments` pairs.

    Attributes:
      source, target: sentence i of `target` is the translation of sentence i of `source`.
      segments: number of pairs in a document; None if every pair is a unit.
    """

    source: Sentences
    target: Sentences
    segments: int | None

    def longest(self) -> Lengths:
        """The tokens in the longest sentence of each unit, including EOS: [units]."""
        both = np.maximum(self.source.lengths, self.target.lengths)
        return both.reshape(-1, self.segments or 1).max(axis=1)

    def numbers(self, units: Indices) -> Indices:
        """The indices of the pairs in `units`: [segments, len(units)], in the order of use."""
        length = self.segments or 1
        return units * length + np.arange(length)[:, np.newaxis]

    def dataset(
        self,
        batches: Callable[[], Iterator[Batch]],
        widths: Sequence[int],
        rows: int | None,
        first: int = 0,
    ) -> tf.data.Dataset:
        """The batches that `translation.Translation` describes.

        A batch of documents becomes one batch with their first segments, one with their second, ...

        Args:
          batches: each call returns a new iterator over the widths and units of all batches.
          widths: the possible widths of batches, in ascending order.
          rows: number of rows of every batch, where rows without a unit are padding. None: as many
            rows as units.
          first: number of the batch with which every iterator begins.
        """
        ids = tf.TensorSpec([rows, None], tf.int32)
        keys = {"source": ids, "labels": ids}
        if self.segments:
            keys["reset"] = tf.TensorSpec([rows], tf.bool)
        padded = tf.data.Dataset.from_generator(
            lambda: self._padded(batches(), widths, rows, first), output_signature=keys
        )
        return padded.map(_with_decoder_inputs).prefetch(AHEAD)

    def _padded(
        self, batches: Iterator[Batch], widths: Sequence[int], rows: int | None, first: int
    ) -> Iterator[dict[str, np.ndarray]]:
        skipped, begun = divmod(first, self.segments or 1)
        for number, (width, units) in enumerate(itertools.islice(batches, skipped, None)):
            for segment, pairs in enumerate(self.numbers(units)):
                if number == 0 and segment < begun:
                    continue
                ids = np.full((2, rows or len(pairs), width), PADDING, np.int32)
                ids[0, : len(pairs)] = self.source.rows(pairs, width)
                ids[1, : len(pairs)] = self.target.rows(pairs, width)
                # Most segments of a document are shorter than its longest one: pad them less.
                used = np.count_nonzero((ids != PADDING).any(axis=(0, 1)))
                source, labels = ids[:, :, : widths[np.searchsorted(widths, used)]]
                batch = {"source": source, "labels": labels}
                if self.segments:
                    batch["reset"] = np.full(len(labels), segment == 0)
                yield batch


def _with_decoder_inputs(
    batch: dict[str, tf.Tensor],
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Inputs, labels and weights; the decoder's inputs are the labels shifted by one position."""
    labels = batch.pop("labels")
    real = labels != PADDING
    before = tf.pad(labels[:, :-1], [[0, 0], [1, 0]], constant_values=BOS)
    # Without tf.where, EOS would be an input at a position of padding.
    target = tf.where(real, before, PADDING)
    return {**batch, "target": target}, labels, tf.cast(real, tf.float32)
