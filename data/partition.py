"""Who sees which examples. Pure NumPy: no rank asks another, the seed alone decides.

A partition gives every rank the indices of its part; parts are disjoint and complete: together
they are 0..examples-1, each once, in every epoch.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from swarm_tf.config import PARTITIONS
from swarm_tf.errors import UsageError

Indices = npt.NDArray[np.int64]

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
    if partition not in PARTITIONS:
        raise UsageError(
            f"data.partition={partition} is unknown; use one of {', '.join(PARTITIONS)}"
        )
    if len(labels) < size:
        raise UsageError(
            f"data.partition={partition} cannot give {size} ranks an example each of "
            f"{len(labels)}; use fewer ranks"
        )
    if partition == "iid":
        return _reshuffled_together(len(labels), rank, size, seed)
    if partition == "static":
        return _reshuffled_alone(static(len(labels), size, seed)[rank], rank, seed)
    if not alpha > 0:
        raise UsageError(f"data.dirichlet_alpha={alpha} must be above 0; 0.1 is strong skew")
    return _reshuffled_alone(dirichlet(labels, size, alpha, seed)[rank], rank, seed)


def _reshuffled_together(examples: int, rank: int, size: int, seed: int) -> Iterator[Indices]:
    epoch = 0
    while True:
        yield iid(examples, size, seed, epoch)[rank]
        epoch += 1


def _reshuffled_alone(part: Indices, rank: int, seed: int) -> Iterator[Indices]:
    epoch = 0
    while True:
        yield _rng(seed, _OWN, rank, epoch).permutation(part)
        epoch += 1


def _without_empty(parts: list[Indices]) -> list[Indices]:
    for rank, part in enumerate(parts):
        if not len(part):
            donor = max(range(len(parts)), key=lambda r: len(parts[r]))
            parts[rank], parts[donor] = parts[donor][-1:], parts[donor][:-1]
    return parts


def _rng(seed: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, *purpose))
