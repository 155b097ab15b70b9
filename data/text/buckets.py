"""Buckets: batches of sentences of similar length, in few fixed shapes with little padding.

Pure NumPy. The length of a pair is that of its longer sentence, and both sentences are padded to
the width of the pair's bucket. One width for both costs 6 to 9 % of the positions for German and
English; separate widths for source and target would need many more shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from data.partition import Indices
from swarm_tf.errors import UsageError

Lengths = npt.NDArray[np.integer]
Batch = tuple[int, Indices]  # the padded width, and the index of each row's example


@dataclass(frozen=True)
class Buckets:
    """Batch shapes: bucket k has rows[k] sentences of widths[k] positions; widths ascend."""

    widths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def fit(
        cls, lengths: Lengths, count: int, positions: int, *, even_rows: bool = False
    ) -> "Buckets":
        """The buckets with the least padding for examples of these lengths.

        Args:
          lengths: [examples], each 1 or more.
          count: number of buckets, at most.
          positions: largest number of positions (rows x width) of a batch.
          even_rows: whether all buckets have as many rows as the widest.

        Raises:
          UsageError: if a batch cannot hold the longest example.
        """
        widths = best_widths(lengths, count)
        if positions < widths[-1]:
            raise UsageError(
                f"train.batch_size={positions} (tokens including padding) must be at least "
                f"{widths[-1]}, the longest sentence; raise it or lower data.max_length"
            )
        rows = (positions // (widths[-1] if even_rows else width) for width in widths)
        return cls(tuple(widths), tuple(rows))

    def of(self, lengths: Lengths) -> npt.NDArray[np.int64]:
        """The index of the narrowest bucket that holds each length, int64 [examples]."""
        return np.searchsorted(self.widths, lengths)

    def batches_per_pass(self, lengths: Lengths) -> float:
        """Mean number of batches that contain each example of these lengths once."""
        return float((1 / np.array(self.rows))[self.of(lengths)].sum())

    def train(self, lengths: Lengths, epochs: Iterator[Indices]) -> Iterator[Batch]:
        """Collects the examples of each bucket, and yields a batch whenever one is full.

        No example is lost: those that do not fill a batch by the end of an epoch are used in the
        next one. Since the examples of an epoch are in random order, the batches are too.

        Args:
          lengths: [examples].
          epochs: the indices of the examples in epoch 0, 1, 2, ..., without end; a multiple of the
            number of examples may be added to each.
        """
        buckets = self.of(lengths)
        waiting = [np.empty(0, np.int64) for _ in self.rows]
        for epoch in epochs:
            full = []
            for k, rows in enumerate(self.rows):
                arrivals = np.flatnonzero(buckets[epoch % len(buckets)] == k)
                members = np.concatenate([waiting[k], epoch[arrivals]])
                count = len(members) // rows
                last = arrivals[rows - 1 - len(waiting[k]) :: rows]
                batches = members[: count * rows].reshape(-1, rows)
                full += [(at, k, batch) for at, batch in zip(last, batches, strict=True)]
                waiting[k] = members[count * rows :]
            for _, k, batch in sorted(full, key=itemgetter(0)):
                yield self.widths[k], batch

    def test(self, lengths: Lengths) -> Iterator[Batch]:
        """Every example once, bucket by bucket; the last batch of a bucket may have fewer rows."""
        buckets = self.of(lengths)
        for k, (width, rows) in enumerate(zip(self.widths, self.rows, strict=True)):
            members = np.flatnonzero(buckets == k)
            for at in range(0, len(members), rows):
                yield width, members[at : at + rows]


def best_widths(lengths: Lengths, count: int) -> list[int]:
    """The `count` widths, in ascending order, for which the least padding is needed.

    Each example is padded to the narrowest width that holds it; the last width is the longest
    length. If there are fewer different lengths than `count`, they are the widths. The solution is
    exact, by dynamic programming over the histogram: O(count * longest^2).

    Args:
      lengths: [examples], each 1 or more.
      count: at least 1.
    """
    histogram = np.bincount(lengths)
    present = np.flatnonzero(histogram)
    edges = np.concatenate([[0], present])
    cumulated = np.concatenate([[0], np.cumsum(histogram[present])])
    # cost[i, j]: positions of a bucket of all lengths above edges[i] that pads to edges[j].
    cost = edges * (cumulated - cumulated[:, np.newaxis]).astype(float)
    cost[np.tril_indices(len(edges))] = np.inf
    least, cuts = cost[0], []
    for _ in range(min(count, len(present)) - 1):
        with_one_more = least[:, np.newaxis] + cost
        cuts.append(with_one_more.argmin(axis=0))
        least = with_one_more.min(axis=0)
    chosen = [len(edges) - 1]
    for cut in reversed(cuts):
        chosen.append(cut[chosen[-1]])
    return edges[chosen[::-1]].tolist()
