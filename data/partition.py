"""Divides the training examples among ranks. Pure NumPy; only the seed decides, without messages.

A partition gives every rank the indices of its part. In every epoch the parts are disjoint and
together contain each of 0..examples-1 once.

Examples in memory are distributed one by one (`epochs`). Examples that are read from disk are
distributed as ranges of consecutive records (`range_epochs`), because a file of records can only be
read sequentially.

A run that goes on with another number of ranks divides what is left of an epoch anew, so that each
example is still used once an epoch: `used_by` finds what was used, `epochs` leaves it out.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from swarm_tf.config import PARTITIONS
from swarm_tf.errors import UsageError

Indices = npt.NDArray[np.int64]
Ranges = npt.NDArray[np.int64]  # [k, 2]: number of the first record, and how many
Mask = npt.NDArray[np.bool_]  # [examples]


@dataclass(frozen=True)
class Used:
    """The examples that earlier stages of a run have used.

    Attributes:
      first: the first epoch that is not used up.
      masks: by the number of an epoch from `first` on, whether each example was used in it.
    """

    first: int = 0
    masks: Mapping[int, Mask] = field(default_factory=dict)


# Ranges per rank. More ranges mix better, but to reach a range a rank must read all records before
# it in its file: with f files it reads (1 + 32 ranks/f)/2 times the bytes if 32 ranks > f.
_RANGES = 32

# Each purpose has its own stream of random numbers, so that no two purposes share a seed.
_COMMON, _CUT, _OWN = range(3)


def iid(examples: int, size: int, seed: int, epoch: int, used: Mask | None = None) -> list[Indices]:
    """Equal parts of a permutation that differs in every epoch, without the examples that were
    used; sizes differ by at most 1."""
    order = _rng(seed, _COMMON, epoch).permutation(examples)
    return np.array_split(_without(order, used), size)


def static(examples: int, size: int, seed: int) -> list[Indices]:
    """Equal parts of a permutation, the same in every epoch; sizes differ by at most 1."""
    return np.array_split(_rng(seed, _CUT).permutation(examples), size)


def dirichlet(labels: npt.NDArray[np.integer], size: int, alpha: float, seed: int) -> list[Indices]:
    """Label skew: each class is divided among the ranks in proportions ~ Dir(alpha, ..., alpha).

    With large alpha the parts are nearly as in `static`; with small alpha each class goes to few
    ranks, and sizes differ. Hsu et al. 2019 (arXiv 1909.06335) draw the proportions of classes for
    each client; drawing the proportions of clients for each class, as here (Yurochkin et al. 2019,
    arXiv 1905.12022), uses every example once. A rank without examples then takes one from the
    largest part, so no part is empty if there are at least as many examples as ranks.

    Args:
      labels: [examples], the class of each example.
      alpha: concentration, above 0.

    Returns:
      For each rank, the indices of its examples.
    """
    rng = _rng(seed, _CUT)
    parts: list[list[Indices]] = [[] for _ in range(size)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        proportions = rng.dirichlet(np.full(size, alpha))
        cuts = np.round(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return _without_empty([np.concatenate(part) for part in parts])


def epochs(
    partition: str,
    labels: npt.NDArray[np.integer],
    *,
    rank: int,
    size: int,
    alpha: float,
    seed: int,
    used: Used = Used(),
) -> Iterator[tuple[int, Indices]]:
    """The number of each epoch, and the indices of `rank` in it in the order of use, without end.

    Args:
      used: what is left out.

    Raises:
      UsageError: if the partition is unknown, alpha <= 0, or there are fewer examples than ranks;
        raised by the call, not when the first epoch is drawn.
    """
    _check(partition, len(labels), size)
    if partition == "iid":
        return (
            (epoch, iid(len(labels), size, seed, epoch, used.masks.get(epoch))[rank])
            for epoch in count(used.first)
        )
    if partition == "static":
        part = static(len(labels), size, seed)[rank]
    else:
        check_alpha(alpha)
        part = dirichlet(labels, size, alpha, seed)[rank]
    return (
        (epoch, _without(_rng(seed, _OWN, rank, epoch).permutation(part), used.masks.get(epoch)))
        for epoch in count(used.first)
    )


def check_alpha(alpha: float) -> None:
    """Raises UsageError if the concentration of a Dirichlet distribution is not above 0."""
    if not alpha > 0:
        raise UsageError(f"data.dirichlet_alpha={alpha} must be above 0; 0.1 is strong skew")


def used_by(
    stages: Sequence[Sequence[int]],
    examples: int,
    batches: Callable[[int, int, Used], Iterator[Indices]],
) -> Used:
    """The examples that earlier stages of a run have used.

    Args:
      stages: for each stage, the batches that each of its ranks has used.
      examples: in an epoch, of all ranks together.
      batches: batches(rank, size, used) are those of a rank in a stage before which `used` was
        used; each index has `examples` times the number of its epoch added.
    """
    used = Used()
    for counts in stages:
        masks = {epoch: mask.copy() for epoch, mask in used.masks.items()}
        for rank, taken in enumerate(counts):
            for batch in itertools.islice(batches(rank, len(counts), used), taken):
                epochs, indices = np.divmod(batch, examples)
                for epoch in np.unique(epochs).tolist():
                    mask = masks.setdefault(epoch, np.zeros(examples, np.bool_))
                    mask[indices[epochs == epoch]] = True
        first = next(e for e in count(used.first) if e not in masks or not masks[e].all())
        used = Used(first, {epoch: mask for epoch, mask in masks.items() if epoch >= first})
    return used


def range_epochs(
    partition: str, files: Sequence[int], *, rank: int, size: int, seed: int, first: int = 0
) -> Iterator[tuple[int, Ranges]]:
    """The number of each epoch from `first` on, and the records that `rank` reads in it.

    Records are given as ranges in the order of use.

    iid distributes the ranges again in every epoch, static only once; the numbers of records
    differ by at most 1 between ranks and do not change. dirichlet gives every rank all records, in
    an order of its own; the caller must drop those that are not in its part of `dirichlet`.

    Args:
      files: number of records in each file. Records are numbered consecutively over all files; no
        range crosses the end of a file.

    Raises:
      UsageError: as `epochs` does.
    """
    _check(partition, sum(files), size)
    all_ranges = ranges(files, size)
    if partition == "iid":
        return (
            (epoch, split_ranges(all_ranges, size, seed, epoch)[rank]) for epoch in count(first)
        )
    if partition == "static":
        all_ranges = split_ranges(all_ranges, size, seed, 0)[rank]
    return (
        (epoch, _rng(seed, _OWN, rank, epoch).permutation(all_ranges)) for epoch in count(first)
    )


def ranges(files: Sequence[int], size: int) -> Ranges:
    """All records in order; each file is cut evenly, into `_RANGES` or more ranges per rank if
    there are enough records."""
    ends = np.cumsum([0, *files])
    parts = math.ceil(_RANGES * size / len(files))
    cuts = np.linspace(0, len(files), len(files) * parts + 1)
    edges = np.unique(np.interp(cuts, np.arange(len(ends)), ends).round().astype(np.int64))
    return np.stack([edges[:-1], np.diff(edges)], axis=1)


def split_ranges(all_ranges: Ranges, size: int, seed: int, epoch: int) -> list[Ranges]:
    """The ranges, shuffled differently in every epoch and divided into one part per rank.

    Parts differ by at most 1 record, so a range may be divided between two ranks.
    """
    first, counts = _rng(seed, _COMMON, epoch).permutation(all_ranges).T
    ends = np.cumsum(counts)
    parts = []
    for positions in np.array_split(np.arange(ends[-1]), size):
        low, high = (np.clip(e, positions[0], positions[-1] + 1) for e in (ends - counts, ends))
        part = np.stack([first + low - (ends - counts), high - low], axis=1)
        parts.append(part[part[:, 1] > 0])
    return parts


def _check(partition: str, examples: int, size: int) -> None:
    if partition not in PARTITIONS:
        raise UsageError(
            f"data.partition={partition} is unknown; use one of {', '.join(PARTITIONS)}"
        )
    if examples < size:
        raise UsageError(
            f"data.partition={partition} cannot divide {examples} examples among {size} ranks; "
            "use fewer ranks"
        )


def _without(indices: Indices, used: Mask | None) -> Indices:
    return indices if used is None else indices[~used[indices]]


def _without_empty(parts: list[Indices]) -> list[Indices]:
    for rank, part in enumerate(parts):
        if not len(part):
            donor = max(range(len(parts)), key=lambda r: len(parts[r]))
            parts[rank], parts[donor] = parts[donor][-1:], parts[donor][:-1]
    return parts


def _rng(seed: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, *purpose))
