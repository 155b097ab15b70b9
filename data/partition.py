"""Who sees which examples. Pure NumPy: no rank asks another, the seed alone decides.

A partition gives every rank the indices of its part; parts are disjoint and complete: together
they are 0..examples-1, each once, in every epoch.

Examples in memory are dealt one by one (`epochs`). Those of a set that is read from disk are dealt
as ranges of neighbours (`range_epochs`), because a file of records can only be read forwards.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import numpy.typing as npt

from swarm_tf.config import PARTITIONS
from swarm_tf.errors import UsageError

Indices = npt.NDArray[np.int64]
Ranges = npt.NDArray[np.int64]  # [k, 2]: number of the first record, and how many

# Ranges a rank. More mix better, but each is found by reading over what stands before it in its
# file: with f files that is (1 + 32 ranks/f)/2 times the bytes if 32 ranks > f, else none.
_RANGES = 32

# One stream of random numbers for each purpose: no two of them may share a seed by accident.
_COMMON, _CUT, _OWN = range(3)


def iid(examples: int, size: int, seed: int, epoch: int) -> list[Indices]:
    """Equal parts of one permutation that is new in every epoch; sizes differ by at most 1."""
    return np.array_split(_rng(seed, _COMMON, epoch).permutation(examples), size)


def static(examples: int, size: int, seed: int) -> list[Indices]:
    """Equal parts of one permutation, for good; sizes differ by at most 1."""
    return np.array_split(_rng(seed, _CUT).permutation(examples), size)


def dirichlet(labels: npt.NDArray[np.integer], size: int, alpha: float, seed: int) -> list[Indices]:
    """Label skew: each class is dealt to the ranks in proportions ~ Dir(alpha, ..., alpha).

    Large alpha comes near `static`, small alpha gives each class to few ranks, and sizes differ.
    Hsu et al. 2019 (arXiv 1909.06335) draw the class mix of each client like this; drawing the
    client mix of each class instead (Yurochkin et al. 2019, arXiv 1905.12022) uses every example
    once. A rank that came out empty takes one example of the largest rank, so with at least as
    many examples as ranks none stays empty.

    Args:
      labels: [examples], the class of each example.
      alpha: concentration, above 0.
    """
    rng = _rng(seed, _CUT)
    parts: list[list[Indices]] = [[] for _ in range(size)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(size, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
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
) -> Iterator[Indices]:
    """The indices that `rank` sees in epoch 0, 1, 2, ..., in the order of use; without end.

    Raises:
      UsageError: for an unknown partition, alpha <= 0, or fewer examples than ranks; at the
        call, before the first epoch is asked for.
    """
    _check(partition, len(labels), size)
    if partition == "iid":
        return (iid(len(labels), size, seed, epoch)[rank] for epoch in count())
    if partition == "static":
        return _reshuffled_alone(static(len(labels), size, seed)[rank], rank, seed)
    if not alpha > 0:
        raise UsageError(f"data.dirichlet_alpha={alpha} must be above 0; 0.1 is strong skew")
    return _reshuffled_alone(dirichlet(labels, size, alpha, seed)[rank], rank, seed)


def range_epochs(
    partition: str, files: Sequence[int], *, rank: int, size: int, seed: int
) -> Iterator[Ranges]:
    """The records that `rank` reads in epoch 0, 1, 2, ..., as ranges in the order of use.

    iid deals the ranges anew in every epoch, static keeps the deal of epoch 0; sizes differ by at
    most 1 and are the same in every epoch. dirichlet gives every rank all records, each in an
    order of its own: the caller keeps those of `dirichlet`.

    Args:
      files: records in each file; records are numbered through all of them, and no range goes
        over the end of a file.

    Raises:
      UsageError: as `epochs`.
    """
    _check(partition, sum(files), size)
    whole = ranges(files, size)
    if partition == "dirichlet":
        return _reshuffled_alone(whole, rank, seed)
    if partition == "static":
        return _reshuffled_alone(deal(whole, size, seed, 0)[rank], rank, seed)
    return (deal(whole, size, seed, epoch)[rank] for epoch in count())


def ranges(files: Sequence[int], size: int) -> Ranges:
    """All records in order, every file cut evenly, `_RANGES` or more a rank if there are as many
    records."""
    ends = np.cumsum([0, *files])
    parts = math.ceil(_RANGES * size / len(files))
    cuts = np.linspace(0, len(files), len(files) * parts + 1)
    edges = np.unique(np.interp(cuts, np.arange(len(ends)), ends).round().astype(np.int64))
    return np.stack([edges[:-1], np.diff(edges)], axis=1)


def deal(whole: Ranges, size: int, seed: int, epoch: int) -> list[Ranges]:
    """The ranges in an order that is new in every epoch, laid end to end and cut into equal parts;
    a range that lies over a cut is shared by two ranks."""
    first, taken = _rng(seed, _COMMON, epoch).permutation(whole).T
    ends = np.cumsum(taken)
    parts = []
    for share in np.array_split(np.arange(ends[-1]), size):
        low, high = (np.clip(e, share[0], share[-1] + 1) for e in (ends - taken, ends))
        part = np.stack([first + low - (ends - taken), high - low], axis=1)
        parts.append(part[part[:, 1] > 0])
    return parts


def _check(partition: str, examples: int, size: int) -> None:
    if partition not in PARTITIONS:
        raise UsageError(
            f"data.partition={partition} is unknown; use one of {', '.join(PARTITIONS)}"
        )
    if examples < size:
        raise UsageError(
            f"data.partition={partition} cannot give {size} ranks an example each of "
            f"{examples}; use fewer ranks"
        )


def _reshuffled_alone(part: Indices, rank: int, seed: int) -> Iterator[Indices]:
    return (_rng(seed, _OWN, rank, epoch).permutation(part) for epoch in count())


def _without_empty(parts: list[Indices]) -> list[Indices]:
    for rank, part in enumerate(parts):
        if not len(part):
            donor = max(range(len(parts)), key=lambda r: len(parts[r]))
            parts[rank], parts[donor] = parts[donor][-1:], parts[donor][:-1]
    return parts


def _rng(seed: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, *purpose))
