"""The step sizes of the lattice, learned from the differences that exchanges see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from swarm_tf.codec.kernels import FLOAT32_DIGITS, Bools, Floats

TAIL = 10.0
"""Range of the lattice over the mean |difference| of a block, at the start."""

_LEAST_TAIL = 6.0
_DECAY = 0.98
_OUT_OF_RANGE = 0.5
_FASTEST, _CAREFUL = 2.0, 1.2
_WARM_UP = 12
_TINIEST, _LARGEST = np.float32(2.0**-40), np.float32(2.0**100)


def longest_tail(bits: int) -> float:
    """The longest useful tail: beyond it an exchange may add more difference than it removes.

    Of a mean square of at least (mean |d|)^2 it leaves s * mean |d|, so a step s up to the mean
    always reduces it. Few bits need longer steps; heavy tails, up to 64 means, tolerate them.
    """
    half: float = 2.0 ** (bits - 1)
    return max(half, min(64.0, 4 * half))


def out_of_range(accepted: Bools) -> bool:
    """Whether the partner is out of range: half of the blocks, or more, could not be read."""
    return bool(accepted.size) and float(np.mean(~accepted)) >= _OUT_OF_RANGE


class BlockScales:
    """Learns for each block of one chunk the mean |difference|, and the tail: range over mean.

    Differences of a Gaussian need a tail of about 5, those of a convolution kernel in training 10
    to 50. An exchange leaves a difference d with variance |d| (s - |d|), so a step s that is too
    long costs as much as a block that cannot be read. Hence:

    - the mean is a running mean: unbiased under shared dither at any number of bits, while a
      maximum diverges at few;
    - a failure multiplies the range by 1.5, from the fourth in a row by 4, since a block that did
      not change for long (a row of an embedding) may start to; the range that finally works,
      divided by the mean that it shows, is the new tail. Every success shortens the tail a little,
      so a few blocks in a hundred fail, and are averaged next time;
    - a partner out of range (half of the blocks failed, as after a rank was stopped) changes
      little, since steps that fit it would be noise for all others: tails grow somewhat, and the
      exact exchange that follows at most doubles the means. In the warm-up, the first dozen
      exchanges, means are set in full, since models begin equal and differences grow fast.
    """

    def __init__(self, blocks: int) -> None:
        self._mean = np.full(blocks, np.nan, np.float32)
        self._tail = np.full(blocks, TAIL, np.float32)
        self._failures = np.zeros(blocks, np.int64)
        self._updates = 0

    def state(self) -> dict[str, Any]:
        """What was learned, for a checkpoint."""
        return {
            "mean": self._mean.copy(),
            "tail": self._tail.copy(),
            "failures": self._failures.copy(),
            "updates": self._updates,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""
        self._mean, self._tail = saved["mean"].copy(), saved["tail"].copy()
        self._failures, self._updates = saved["failures"].astype(np.int64), int(saved["updates"])

    @property
    def known(self) -> bool:
        """False until the first exchange, which is exact."""
        return self._updates > 0

    def step_sizes(self, bits: int, magnitude: Floats) -> Floats:
        """Lattice steps for `bits` a weight: float32 [blocks], above zero.

        Args:
          bits: a weight.
          magnitude: float32 [blocks], about the largest |weight| of each block.
        """
        reach = self._mean * self._tail
        # Twice the smallest step that can be read: the partner's weights may be a little larger.
        floor = np.maximum(2 * FLOAT32_DIGITS * magnitude, _TINIEST)
        chosen: Floats = np.maximum(reach / np.float32(2 ** (bits - 1)), floor).astype(np.float32)
        return chosen

    def update_exact(self, spread: Floats) -> None:
        """Update from the mean |difference| of an exact exchange."""
        self._updates += 1
        # A mean of 0, of weights that never changed, says nothing of later ones.
        usual = (self._mean > 0) & (self._updates > _WARM_UP)
        longest = np.where(usual, _FASTEST * self._mean, np.inf)
        spread = np.where(np.isfinite(spread), spread, np.float32(0))
        self._mean = np.minimum(spread, longest).astype(np.float32)
        self._failures[:] = 0

    def update(self, bits: int, used: Floats, accepted: Bools, spread: Floats) -> None:
        """Update from an exchange over the lattice whose initiator chose the step sizes `used`."""
        if out_of_range(accepted):
            # A step up to the mean costs little; where steps are longer, tails grow more slowly.
            longer = np.where(self._tail < 2 ** (bits - 1), _FASTEST, _CAREFUL) * self._tail
            longer = np.clip(longer, _LEAST_TAIL, longest_tail(bits))
            self._tail = np.where(accepted, self._tail, longer).astype(np.float32)
            return
        self._updates += 1
        least, most = _LEAST_TAIL, longest_tail(bits)
        reach = used * np.float32(2 ** (bits - 1))
        mean = np.where(np.isnan(self._mean), reach / self._tail, self._mean)

        failed_before = self._failures > 0
        found = np.clip(reach / np.maximum(spread, reach / most), least, most)
        good_mean = np.where(failed_before, spread, (mean + spread) / 2)
        good_tail = np.where(failed_before, found, np.maximum(self._tail * _DECAY, least))

        failures = self._failures + 1
        longer = np.maximum(reach, mean * self._tail) * np.where(failures > 3, 4.0, 1.5)
        longer = np.minimum(longer, _LARGEST)
        bad_tail = np.clip(longer / np.maximum(mean, longer / most), least, most)

        self._mean = np.where(accepted, good_mean, longer / bad_tail).astype(np.float32)
        self._tail = np.where(accepted, good_tail, bad_tail).astype(np.float32)
        self._failures = np.where(accepted, 0, failures)
