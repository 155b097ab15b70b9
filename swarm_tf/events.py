"""What happens on a rank, as events; counters and log lines are folds over them.

Code that notices something creates an event; it does not know who uses the event.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias


@dataclass(frozen=True)
class ExchangeEnded:
    """An exchange that this rank initiated is over; `SwarmCallback.on_exchange_end` receives it.

    Attributes:
      id: counted by the initiator.
      partner: the responder's rank.
      step: the initiator's local steps when it published the model that it sent.
      started, seconds: time of the start (monotonic clock), and seconds until the last answer.
      failure: why the exchange failed, in words; empty if it did not.
      payload_bytes: of the initiator's model, or in mode "pull" of its partner's.
      blocks, blocks_skipped: of the codec; a skipped block could not be decoded reliably.
      overdue: the answer came after its deadline.
      harmless: not a failure to report: two requests crossed, or the partner was busy.
      adopted: the initiator copies the partner's model, since its own is not finite.
      explained: another event has already reported why it failed.
    """

    id: int
    partner: int
    step: int
    started: float
    seconds: float
    failure: str = ""
    payload_bytes: int = 0
    blocks: int = 0
    blocks_skipped: int = 0
    overdue: bool = False
    harmless: bool = False
    adopted: bool = False
    explained: bool = False


@dataclass(frozen=True)
class ExchangeOverdue:
    """No answer for `seconds`; another exchange may start, and a late answer still applies."""

    partner: int
    seconds: float


@dataclass(frozen=True)
class ExchangeLate:
    """The exchange requested from `partner` takes long: another one starts beside it."""

    partner: int


@dataclass(frozen=True)
class ExchangeServed:
    """This rank has averaged all chunks of an exchange that `partner` requested."""

    partner: int


@dataclass(frozen=True)
class ChunkAveraged:
    """One side of one chunk was averaged; only on request, since it costs a second decoding.

    Attributes:
      initiator, exchange, chunk: identify the chunk.
      accepted: bool [blocks], those that were averaged.
      correction: float32 [blocks, BLOCK], what was added to the own side.
      withheld: it was not added, since the partner had ended after fewer steps.
    """

    initiator: int
    exchange: int
    chunk: int
    accepted: Any
    correction: Any
    withheld: bool = False


@dataclass(frozen=True)
class PartnersBusy:
    """(blocking) All ranks from which this one requested an exchange in `seconds` were busy."""

    seconds: float


@dataclass(frozen=True)
class PartnerSilent:
    """(blocking) `partner` stopped sending in the middle of an exchange that this rank served."""

    partner: int


@dataclass(frozen=True)
class RankGone:
    """Another rank's training failed, or its program ended; `reason` is the whole sentence."""

    rank: int
    reason: str


@dataclass(frozen=True)
class NotFinite:
    """This rank's weights are NaN or Inf after `step`; it will copy those of `partner`."""

    step: int
    partner: int


@dataclass(frozen=True)
class MessageDropped:
    """A message was damaged, or of another model or version."""

    reason: str = ""


@dataclass(frozen=True)
class BytesSent:
    """A message was sent: bytes of its header, arrays and payload."""

    count: int


@dataclass(frozen=True)
class BoundaryPassed:
    """A boundary is over.

    Attributes:
      exposed_seconds: how long its averaging stopped the training loop.
      staleness: local steps between publish and apply, of each exchange that ended.
    """

    exposed_seconds: float
    staleness: tuple[int, ...] = ()


@dataclass(frozen=True)
class RanksAveraged:
    """(synchronous algorithms) All ranks averaged together."""

    exposed_seconds: float


Event: TypeAlias = (
    ExchangeEnded
    | ExchangeOverdue
    | ExchangeLate
    | ExchangeServed
    | ChunkAveraged
    | PartnersBusy
    | PartnerSilent
    | RankGone
    | NotFinite
    | MessageDropped
    | BytesSent
    | BoundaryPassed
    | RanksAveraged
)


@dataclass(frozen=True, slots=True)
class Counters:
    """What one rank counted. Immutable, so one thread may read what another one replaces."""

    exchanges: int = 0  # initiated here and applied
    exchanges_failed: int = 0  # initiated here and given up or refused
    exchanges_late: int = 0  # initiated here; another one started before the answer came
    exchanges_served: int = 0  # initiated by others, answered here
    bytes_sent: int = 0  # everything: headers, replies, repetitions
    messages_dropped: int = 0  # damaged, or of another model or version
    payload_bytes: int = 0  # the encoded models in the requests of `exchanges`
    blocks_skipped: int = 0  # whose checksum failed, of blocks_total
    blocks_total: int = 0
    exposed_seconds: float = 0.0  # averaging stopped the training loop
    staleness_sum: int = 0  # local steps between publish and apply
    staleness_count: int = 0
    adoptions: int = 0  # a neighbour's model was copied in place of one with NaN or Inf

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            *(getattr(self, item.name) + getattr(other, item.name) for item in fields(self))
        )

    def after(self, event: Event) -> Counters:
        """The counters after `event`."""
        change = _counted(event)
        return self if change is None else self + change

    @property
    def staleness_mean(self) -> float:
        """Local steps between publish and apply; 0 before the first exchange."""
        return self.staleness_sum / max(self.staleness_count, 1)

    @property
    def payload_bytes_per_exchange(self) -> float:
        """Bytes of one encoded model; 0 before the first exchange."""
        return self.payload_bytes / max(self.exchanges, 1)


def _counted(event: Event) -> Counters | None:
    match event:
        case ExchangeEnded():
            done = not event.failure
            failed = bool(event.failure) and not event.harmless
            return Counters(
                exchanges=done and not event.adopted,
                adoptions=done and event.adopted,
                exchanges_failed=failed - event.overdue,  # counted when it was overdue
                payload_bytes=event.payload_bytes if done else 0,
                blocks_total=event.blocks,
                blocks_skipped=event.blocks_skipped,
            )
        case ExchangeOverdue() | PartnersBusy():
            return Counters(exchanges_failed=1)
        case ExchangeLate():
            return Counters(exchanges_late=1)
        case ExchangeServed():
            return Counters(exchanges_served=1)
        case MessageDropped():
            return Counters(messages_dropped=1)
        case BytesSent(count):
            return Counters(bytes_sent=count)
        case BoundaryPassed(seconds, staleness):
            return Counters(
                exposed_seconds=seconds,
                staleness_sum=sum(staleness),
                staleness_count=len(staleness),
            )
        case RanksAveraged(seconds):
            return Counters(exchanges=1, exposed_seconds=seconds)
    return None


def merge(counters: Iterable[Counters]) -> Counters:
    """The sums over all ranks; `exposed_seconds` too, so divide it by the ranks."""
    return sum(counters, start=Counters())


def log_line(rank: int, event: Event) -> tuple[int, str] | None:
    """The level and the line that rank `rank` logs of an event; None for most of them."""
    match event:
        case ExchangeEnded(failure=failure) if failure and not (event.harmless or event.explained):
            return logging.WARNING, f"rank {rank}: no exchange: {failure}"
        case ExchangeOverdue(partner, seconds):
            waited = f"waited {seconds:g} s for rank {partner}"
            return logging.WARNING, f"rank {rank} {waited}; training goes on"
        case PartnersBusy(seconds):
            busy = f"every rank that it asked in {seconds:g} s was itself waiting"
            return logging.WARNING, f"rank {rank}: no exchange: {busy}"
        case PartnerSilent(partner):
            return logging.WARNING, f"rank {rank}: rank {partner} stopped sending its exchange"
        case RankGone(_, reason):
            return logging.WARNING, f"rank {rank}: {reason}"
        case NotFinite(step, partner):
            return logging.WARNING, (
                f"rank {rank}: its weights are NaN or Inf after step {step}; it takes the model of "
                f"rank {partner}"
            )
        case MessageDropped(reason) if reason:
            return logging.DEBUG, f"rank {rank} dropped a message: {reason}"
    return None
