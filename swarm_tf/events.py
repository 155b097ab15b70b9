"""What a rank counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Counters:
    """What one rank counted. Immutable, so one thread may read what another one replaces.

    `total += Counters(exchanges=1, bytes_sent=n)` counts an exchange.
    """

    exchanges: int = 0  # initiated here and applied
    exchanges_failed: int = 0  # initiated here and given up or refused
    exchanges_served: int = 0  # initiated by others, answered here
    bytes_sent: int = 0  # everything: headers, replies, repetitions
    messages_dropped: int = 0  # damaged, or of another model or version
    payload_bytes: int = 0  # the encoded models in the requests of `exchanges`
    blocks_skipped: int = 0  # whose checksum failed, of blocks_total
    blocks_total: int = 0
    exposed_seconds: float = 0.0  # the training loop stood still for averaging
    staleness_sum: int = 0  # local steps between publish and apply
    staleness_count: int = 0
    adoptions: int = 0  # a neighbour's model was taken in place of one with NaN or Inf

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            *(getattr(self, item.name) + getattr(other, item.name) for item in fields(self))
        )

    @property
    def staleness_mean(self) -> float:
        """Local steps between publish and apply; 0 before the first exchange."""
        return self.staleness_sum / max(self.staleness_count, 1)

    @property
    def payload_bytes_per_exchange(self) -> float:
        """Bytes of one encoded model; 0 before the first exchange."""
        return self.payload_bytes / max(self.exchanges, 1)


def merge(counters: Iterable[Counters]) -> Counters:
    """The sums over all ranks; `exposed_seconds` too, so divide it by the ranks."""
    return sum(counters, start=Counters())
