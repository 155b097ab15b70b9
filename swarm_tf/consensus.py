"""The mean of all ranks' models, and more; all ranks must call these functions in one order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from swarm_tf import state
from swarm_tf.cluster.world import START_SECONDS, gather_over
from swarm_tf.transport import collectives
from swarm_tf.transport.base import Transport
from swarm_tf.weights import FlatWeights

Chunks = list[npt.NDArray[Any]]
"""As `FlatWeights.copy` returns them."""

_BROADCAST_BYTES = 2**24
_log = logging.getLogger("swarm_tf")


def copy(weights: FlatWeights) -> Chunks:
    """This rank's weights, in chunks."""
    return weights.copy()


def equalize(variables: Sequence[keras.Variable], transport: Transport) -> None:
    """Overwrite every rank's variables with those of rank 0, each in its own type."""
    for group in _groups(variables):
        values = [state.as_bytes(variable) for variable in group]
        whole = np.concatenate(values)
        transport.broadcast([whole])
        if transport.rank == 0:
            continue
        ends = np.cumsum([len(value) for value in values])
        for variable, value in zip(group, np.split(whole, ends[:-1]), strict=True):
            state.set_bytes(variable, value)


def _groups(variables: Sequence[keras.Variable]) -> Iterator[list[keras.Variable]]:
    """Groups of variables that are sent together, since most are small."""
    group: list[keras.Variable] = []
    size = 0
    for variable in variables:
        if group and size > _BROADCAST_BYTES:
            yield group
            group, size = [], 0
        group.append(variable)
        size += 4 * int(np.prod(variable.shape))
    if group:
        yield group


def mean(weights: FlatWeights, transport: Transport, timeout: float = START_SECONDS) -> Chunks:
    """The mean over all ranks' weights, in chunks, the same bits everywhere.

    A rank whose weights are not all finite is left out, and named in the log.
    """
    chunks = copy(weights)
    collectives.average(transport, chunks, timeout)
    if finite(chunks):
        return chunks
    # Every rank comes here, since all have the same mean.
    own = copy(weights)
    flags = gather_over(transport, finite(own), "the mean of finite models", timeout)
    finite_ranks = [rank for rank, flag in enumerate(flags) if flag]
    excluded = [rank for rank, flag in enumerate(flags) if not flag]
    log = _log.error if transport.rank == 0 else _log.debug
    if not finite_ranks or not excluded:
        log("the mean of all ranks' weights is not finite: %s", _why(excluded))
        return chunks
    log("%s; the mean is taken without %s", _why(excluded), "it" if len(excluded) == 1 else "them")
    chunks = own if transport.rank in finite_ranks else [np.zeros_like(chunk) for chunk in own]
    collectives.average(transport, chunks, timeout)
    for chunk in chunks:
        chunk *= chunk.dtype.type(transport.size / len(finite_ranks))
    return chunks


def finite(chunks: Chunks) -> bool:
    """Whether every number is finite."""
    # Minimum and maximum keep a NaN, and are quicker than checking each number.
    ends = [end for chunk in chunks if chunk.size for end in (chunk.min(), chunk.max())]
    return bool(np.isfinite(np.array(ends, np.float64)).all())


def _why(ranks: list[int]) -> str:
    if not ranks:
        return "the weights are too large to be added"
    names = ", ".join(map(str, ranks))
    return f"the weights of rank{'s' if len(ranks) > 1 else ''} {names} contain NaN or Inf"


def distance(weights: FlatWeights, transport: Transport, mean: Chunks) -> float:
    """Consensus distance: root mean square over ranks of |x_i - mean|, over |mean|.

    Ranks whose weights are not finite are left out.
    """
    pairs = zip(copy(weights), mean, strict=True)
    square = sum(float(np.sum(np.square(x - m), dtype=np.float64)) for x, m in pairs)
    norm = sum(float(np.sum(np.square(m), dtype=np.float64)) for m in mean)
    every = transport.gather(repr(square).encode(), "consensus distance", START_SECONDS)
    squares = [s for s in map(float, every) if np.isfinite(s)]
    return float(np.sqrt(np.mean(squares or [np.nan]) / max(norm, 1e-300)))
