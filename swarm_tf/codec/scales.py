"""How large the lattice steps are: learned from the differences that exchanges see."""

from __future__ import annotations

import numpy as np

from swarm_tf.codec.base import FLOAT32_DIGITS, Bools, Floats

LEAST_TAIL = 10.0
"""Smallest range of the lattice over the mean |difference| of a block."""

_MOST_TAIL = 1000.0
_TAIL_DECAY = 0.97
_TINIEST = np.float32(2.0**-100)
_MOST_FAILURES = 6


class BlockScales:
    """Learns for each block of one chunk the mean |difference|, and the tail: range over mean.

    A mean, not a maximum: under shared dither it is unbiased at any number of bits, where a
    maximum runs away at few. A block that could not be read doubles its estimate, and squares
    that factor each time in a row (2, 4, 16, ...), since a block that was silent for long, such
    as a row of an embedding, may wake up with differences of any size. Once it can be read again,
    the range that it took over the mean that is seen is its new tail; that forgets slowly.
    Blocks that mix weights with moving statistics keep a long tail.
    """

    def __init__(self, blocks: int) -> None:
        self._mean = np.full(blocks, np.nan, np.float32)
        self._tail = np.full(blocks, LEAST_TAIL, np.float32)
        self._failures = np.zeros(blocks, np.int64)

    @property
    def known(self) -> bool:
        """False until every block has been compared once; the first exchange must be exact."""
        return not np.isnan(self._mean).any()

    def steps(self, bits: int, magnitude: Floats) -> Floats:
        """Lattice steps for `bits` a weight: float32 [blocks], above zero."""
        steps = self._mean * self._tail / np.float32(2 ** (bits - 1))
        # Twice the smallest step that can be read: the partner's weights may be larger.
        floor = np.maximum(2 * FLOAT32_DIGITS * magnitude, _TINIEST)
        chosen: Floats = np.maximum(steps, floor).astype(np.float32)
        return chosen

    def exact(self, spread: Floats) -> None:
        """Take in the mean |difference| of an exact exchange."""
        self._mean = np.where(np.isfinite(spread), spread, np.float32(0)).astype(np.float32)
        self._failures[:] = 0

    def update(self, bits: int, used: Floats, accepted: Bools, spread: Floats) -> None:
        """Take in an exchange over the lattice whose initiator chose the steps `used`."""
        reach = used * np.float32(2 ** (bits - 1))
        mean = np.where(np.isnan(self._mean), reach / self._tail, self._mean)

        needed = np.maximum(reach / np.maximum(spread, reach / _MOST_TAIL), LEAST_TAIL)
        decayed = np.maximum(self._tail * np.float32(_TAIL_DECAY), LEAST_TAIL)
        learned = np.where(self._failures > 0, np.maximum(needed, self._tail), decayed)

        failures = np.where(accepted, 0, np.minimum(self._failures + 1, _MOST_FAILURES))
        growth = np.exp2(np.exp2(failures - 1.0)).astype(np.float32)
        grown = np.maximum(mean, reach / self._tail) * growth

        self._mean = np.where(accepted, (mean + spread) / 2, grown).astype(np.float32)
        self._tail = np.where(accepted, learned, self._tail).astype(np.float32)
        self._failures = failures
