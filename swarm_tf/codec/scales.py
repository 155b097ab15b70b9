"""How large the lattice steps are: learned from the differences that exchanges see."""

from __future__ import annotations

import enum

import numpy as np

from swarm_tf.codec.base import FLOAT32_DIGITS, Bools, Floats

TAIL = 10.0
"""Range of the lattice over the mean |difference| of a block, to begin with."""

_LEAST_TAIL = 6.0
_DECAY = 0.98
_TOO_MANY = 0.25
_WIDER = 4.0
_TINIEST, _LARGEST = np.float32(2.0**-40), np.float32(2.0**100)


def longest_tail(bits: int) -> float:
    """Beyond it an exchange may add more to the differences than it takes away.

    It leaves s * mean |d| of a mean square that is at least (mean |d|)^2: a step s up to the mean
    is always worth it. Few bits must take longer ones, and heavy tails, up to 64 means, bear them.
    """
    half: float = 2.0 ** (bits - 1)
    return max(half, min(64.0, 4 * half))


class Width(enum.Enum):
    """How the next exchange of a chunk travels."""

    EXACT = enum.auto()
    """As float32: nothing is known of the differences yet."""
    WIDE = enum.auto()
    """Over a wider lattice: many blocks could not be read."""
    USUAL = enum.auto()


class BlockScales:
    """Learns for each block of one chunk the mean |difference|, and the tail: range over mean.

    Differences of a Gaussian need a tail of about 5, those of a convolution kernel in training 10
    to 50. An exchange leaves a difference d with variance |d| (s - |d|), so a step s that is too
    long costs as much as a block that cannot be read. Hence:

    - the mean is a running mean: unbiased under shared dither at any number of bits, where a
      maximum runs away at few;
    - a failure lengthens the range by half, the fourth and later ones in a row by 4, for a
      block that was silent for long, such as a row of an embedding, may wake up; the range that
      works at last, over the mean that it shows, is the new tail. Every success shortens the
      tail a little: a few blocks in a hundred fail, and are averaged next time;
    - after an exchange in which a quarter of the blocks failed, the next one is `WIDE`: it has
      the bits for four times the range and a finer step too, so nearly all blocks are averaged and
      show their mean. If a quarter fails even so, the next one is `EXACT`.
    """

    def __init__(self, blocks: int) -> None:
        self.width = Width.EXACT
        self._mean = np.full(blocks, np.nan, np.float32)
        self._tail = np.full(blocks, TAIL, np.float32)
        self._failures = np.zeros(blocks, np.int64)

    def steps(self, bits: int, magnitude: Floats) -> Floats:
        """Lattice steps for `bits` a weight: float32 [blocks], above zero.

        Args:
          bits: a weight; those of the wider lattice if `width` says so.
          magnitude: float32 [blocks], about the largest |weight| of each block.
        """
        reach = self._mean * self._tail
        if self.width is Width.WIDE:
            reach *= _WIDER
        # Twice the smallest step that can be read: the partner's weights may be a little larger.
        floor = np.maximum(2 * FLOAT32_DIGITS * magnitude, _TINIEST)
        chosen: Floats = np.maximum(reach / np.float32(2 ** (bits - 1)), floor).astype(np.float32)
        return chosen

    def exact(self, spread: Floats) -> None:
        """Take in the mean |difference| of an exact exchange."""
        self._mean = np.where(np.isfinite(spread), spread, np.float32(0)).astype(np.float32)
        self._failures[:] = 0
        self.width = Width.USUAL

    def wide(self, accepted: Bools, spread: Floats) -> None:
        """Take in an exchange over the wider lattice: the means; the tails are as they were."""
        self._mean = np.where(accepted, spread, self._mean).astype(np.float32)
        self._failures = np.where(accepted, 0, self._failures + 1)
        self.width = Width.EXACT if _too_many(accepted) else Width.USUAL

    def update(self, bits: int, used: Floats, accepted: Bools, spread: Floats) -> None:
        """Take in an exchange over the usual lattice whose initiator chose the steps `used`."""
        least, most = _LEAST_TAIL, longest_tail(bits)
        reach = used * np.float32(2 ** (bits - 1))
        mean = np.where(np.isnan(self._mean), reach / self._tail, self._mean)

        again = self._failures > 0
        found = np.clip(reach / np.maximum(spread, reach / most), least, most)
        good_mean = np.where(again, spread, (mean + spread) / 2)
        good_tail = np.where(again, found, np.maximum(self._tail * _DECAY, least))

        failures = self._failures + 1
        longer = np.maximum(reach, mean * self._tail) * np.where(failures > 3, 4.0, 1.5)
        longer = np.minimum(longer, _LARGEST)
        bad_tail = np.clip(longer / np.maximum(mean, longer / most), least, most)

        self._mean = np.where(accepted, good_mean, longer / bad_tail).astype(np.float32)
        self._tail = np.where(accepted, good_tail, bad_tail).astype(np.float32)
        self._failures = np.where(accepted, 0, failures)
        self.width = Width.WIDE if _too_many(accepted) else Width.USUAL


def _too_many(accepted: Bools) -> bool:
    """Whether so many blocks failed that the next exchange had better be a safe one."""
    return bool(accepted.size) and float(np.mean(~accepted)) > _TOO_MANY
