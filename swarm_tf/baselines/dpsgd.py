"""D-PSGD: after every step all ranks average synchronously with their neighbours.

Lian et al. 2017, arXiv 1705.09056, algorithm 1.

    g_i     <- gradient at x_i             computed while the models are sent
    x_i     <- sum_j W_ij x_j - rate g_i   W doubly stochastic, W_ij > 0 for neighbours only

W has Metropolis-Hastings weights: W_ij = 1 / (1 + max(degree i, degree j)).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from swarm_tf import consensus
from swarm_tf.algorithm import Algorithm
from swarm_tf.codec import BLOCK
from swarm_tf.options import with_options
from swarm_tf.topology import GraphOptions, neighbors, topology_option
from swarm_tf.transport import collectives


@dataclass
class DPSGDConfig(GraphOptions):
    """Options of D-PSGD."""

    topology: str = topology_option("ring")


@with_options
class DPSGD(DPSGDConfig, Algorithm):
    """Synchronous averaging with all neighbours, overlapped with the next step."""

    name = "dpsgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mixing: dict[int, float] = {}
        if self.transport is not None:
            rank, size = self.transport.rank, self.transport.size
            graph = self.graph(size, self.seed)
            self.mixing = {
                other: 1 / (1 + max(graph.degree[rank], graph.degree[other]))
                for other in neighbors(graph, rank)
            }

    def begin(self, common: dict[str, Any]) -> None:
        """Start the thread that exchanges models."""
        assert self.transport is not None
        self._background = collectives.Background(self.transport.rank)
        self._background.start()
        self._published: consensus.Chunks = []
        self._theirs: list[dict[int, Any]] = []
        self._transfers: list[collectives.Handle] = []
        if self.resumed is not None and self.resumed["own"]:
            self._published = list(self.resumed["published"])
            self._theirs = [
                {int(other): x for other, x in chunk.items()} for chunk in self.resumed["theirs"]
            ]

    def state(self) -> dict[str, Any]:
        """See `Algorithm`; waits for the models that are under way."""
        self._wait()
        theirs = [{str(other): x.copy() for other, x in chunk.items()} for chunk in self._theirs]
        published = [chunk.copy() for chunk in self._published]
        return {**super().state(), "published": published, "theirs": theirs}

    def boundary(self, step: int) -> None:
        """Average with the neighbours' last models, then send this rank's model to them."""
        with self.exposed():
            assert self.weights is not None
            chunks = self.weights.add(self._corrections())
            self._publish([np.array(chunk) for chunk in chunks])

    def end(self, step: int) -> None:
        """Wait for the models sent last; no step follows that could use them."""
        self._wait()
        self._background.stop()

    def abandon(self, *, exits: bool = False) -> None:
        """Stop without waiting for the transfers that have begun."""
        self._background.stop(wait=False)

    def _publish(self, chunks: consensus.Chunks) -> None:
        assert self.transport is not None
        transport, timeout = self.transport, self.timeout_seconds
        self._published = chunks
        self._theirs = [{other: np.empty_like(c) for other in self.mixing} for c in chunks]
        self._transfers = [
            self._background.submit(
                collectives.sendrecv(
                    transport,
                    dict.fromkeys(self.mixing, own),
                    into,
                    collectives.session_tag(transport, number),
                    timeout,
                )
            )
            for number, (own, into) in enumerate(zip(chunks, self._theirs, strict=True))
        ]

    def _wait(self) -> None:
        for transfer in self._transfers:
            transfer.wait()

    def _corrections(self) -> list[tf.Tensor | None]:
        """sum_j W_ij (x_j - x_i) of the models sent last, by chunk; None before the first."""
        assert self.weights is not None
        if not self._published:
            return [None] * len(self.weights.lengths)
        self._wait()
        corrections: list[tf.Tensor | None] = []
        for own, theirs in zip(self._published, self._theirs, strict=True):
            correction = np.zeros_like(own)
            for other, x in theirs.items():
                correction += np.float32(self.mixing[other]) * (x - own)
            corrections.append(correction.reshape(-1, BLOCK))
        return corrections
