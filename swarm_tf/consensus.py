"""The models of all ranks taken together; every rank must call these functions, in one order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swarm_tf.transport import jobs
from swarm_tf.transport.base import Transport
from swarm_tf.weights import FlatWeights
from swarm_tf.world import START_SECONDS

Chunks = list[npt.NDArray[np.float32]]


def copy(weights: FlatWeights) -> Chunks:
    """This rank's weights, in chunks."""
    return [np.array(chunk) for chunk in weights.gather()]


def equalize(weights: FlatWeights, transport: Transport) -> None:
    """Overwrite every rank's weights with those of rank 0."""
    chunks = copy(weights)
    transport.broadcast(chunks)
    weights.assign(chunks)


def mean(weights: FlatWeights, transport: Transport, timeout: float = START_SECONDS) -> Chunks:
    """The mean over all ranks' weights, in chunks, the same bits everywhere."""
    chunks = copy(weights)
    jobs.average(transport, chunks, timeout)
    return chunks


def distance(weights: FlatWeights, transport: Transport, mean: Chunks) -> float:
    """Consensus distance: root mean square over ranks of |x_i - mean|, over |mean|."""
    pairs = zip(weights.gather(), mean, strict=True)
    square = sum(float(np.sum(np.square(np.asarray(x) - m), dtype=np.float64)) for x, m in pairs)
    norm = sum(float(np.sum(np.square(m), dtype=np.float64)) for m in mean)
    every = transport.gather(repr(square).encode(), "consensus distance", START_SECONDS)
    return float(np.sqrt(np.mean([float(s) for s in every]) / max(norm, 1e-300)))
