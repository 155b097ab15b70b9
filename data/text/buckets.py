"""Sentences of like length together: batches of few, fixed shapes with little padding. Pure NumPy.

A pair is as long as its longer sentence, and both are padded to the width of the pair's bucket.
One width for both is enough: German and English differ so little that it costs 6 to 9 % of the
positions, where a bucket a pair of lengths would need far more shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from data.partition import Indices
from swarm_tf.errors import UsageError

Lengths = npt.NDArray[np.integer]
Batch = tuple[int, Indices]  # the width of the sentences, and the number of each row's example


@dataclass(frozen=True)
class Buckets:
    """Batch shapes: of bucket k, rows[k] sentences of widths[k] positions; widths rise."""

    widths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def fit(
        cls, lengths: Lengths, count: int, positions: int, *, even_rows: bool = False
    ) -> "Buckets":
        """The `count` buckets that suit examples of these lengths best, `positions` a batch.

        Args:
          even_rows: narrow batches have no more rows than the widest.

        Raises:
          UsageError: if a batch cannot hold the longest example.
        """
        widths = best_widths(lengths, count)
        if positions < widths[-1]:
            raise UsageError(
                f"train.batch_size={positions} counts tokens with their padding and must be at "
                f"least {widths[-1]}, the longest sentence; or set data.max_length lower"
            )
        rows = (positions // (widths[-1] if even_rows else width) for width in widths)
        return cls(tuple(widths), tuple(rows))

    def of(self, lengths: Lengths) -> npt.NDArray[np.int64]:
        """The bucket of each length: the narrowest that holds it."""
        return np.searchsorted(self.widths, lengths)

    def batches_per_pass(self, lengths: Lengths) -> float:
        """How many batches examples of these lengths fill, once each."""
        return float((1 / np.array(self.rows))[self.of(lengths)].sum())

    def train(self, lengths: Lengths, epochs: Iterator[Indices]) -> Iterator[Batch]:
        """Deals the endless stream of epochs into buckets, and gives each out when it is full.

        Every example comes as often as in the stream: those that do not fill a bucket by the end
        of an epoch wait for the next one. As an epoch is in random order, so are the buckets.

        Args:
          lengths: of example 0, 1, 2, ...
          epochs: the examples of epoch 0, 1, 2, ...
        """
        buckets = self.of(lengths)
        waiting = [np.empty(0, np.int64) for _ in self.rows]
        for epoch in epochs:
            full = []
            for k, rows in enumerate(self.rows):
                arrivals = np.flatnonzero(buckets[epoch] == k)
                members = np.concatenate([waiting[k], epoch[arrivals]])
                count = len(members) // rows
                last = arrivals[rows - 1 - len(waiting[k]) :: rows]
                batches = members[: count * rows].reshape(-1, rows)
                full += [(at, k, batch) for at, batch in zip(last, batches, strict=True)]
                waiting[k] = members[count * rows :]
            for _, k, batch in sorted(full, key=itemgetter(0)):
                yield self.widths[k], batch

    def test(self, lengths: Lengths) -> Iterator[Batch]:
        """Every example once, bucket by bucket; the last batch of each may have fewer rows."""
        buckets = self.of(lengths)
        for k, (width, rows) in enumerate(zip(self.widths, self.rows, strict=True)):
            members = np.flatnonzero(buckets == k)
            for at in range(0, len(members), rows):
                yield width, members[at : at + rows]


def best_widths(lengths: Lengths, count: int) -> list[int]:
    """The `count` widths, rising, with which the fewest positions are padding.

    Each length goes to the narrowest width that holds it; the last width is the longest length.
    With fewer different lengths than `count`, these are the widths. Exact, by dynamic programming
    over the histogram: O(count * longest^2).

    Args:
      lengths: [examples], each 1 or more.
    """
    tally = np.bincount(lengths)
    present = np.flatnonzero(tally)
    edges = np.concatenate([[0], present])
    upto = np.concatenate([[0], np.cumsum(tally[present])])
    # cost[i, j]: positions of a bucket for all lengths above edges[i], padded to edges[j].
    cost = edges * (upto - upto[:, np.newaxis]).astype(float)
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
