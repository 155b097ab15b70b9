"""How many bytes of an exchange may be on their way at once, from the measured round trips."""

from collections import deque
from dataclasses import dataclass

FEWEST_CHUNKS = 3  # one is encoded, one travels, one is decoded
MOST_BYTES = 2**28  # of memory: the own side of a chunk is kept until it is answered
_GAIN = 1.5
_LAST_RATES, _LAST_ROUND_TRIPS = 64, 8


@dataclass(frozen=True)
class Stamp:
    """A chunk was sent.

    Attributes:
      at: when.
      answered: bytes that the partner had answered by then.
      alone: whether nothing else was in flight.
    """

    at: float
    answered: int
    alone: bool


class Window:
    """The bytes that may be in flight to one partner.

    A link is full if it holds its rate times the round trip of a chunk that waits for no other one;
    both are measured, as in BBR (Cardwell et al. 2016, "BBR: congestion-based congestion control").
    The window is half as much again, so that it grows until the rate does not. The first chunk of
    an exchange waits for no other one. All times are in seconds of one clock.
    """

    def __init__(self) -> None:
        self._answered = 0
        self._rates: deque[float] = deque(maxlen=_LAST_RATES)  # bytes a second
        self._round_trips: deque[float] = deque(maxlen=_LAST_ROUND_TRIPS)  # seconds

    def allows(self, in_flight: int, size: int) -> bool:
        """Whether `size` bytes more may be sent while `in_flight` are not answered yet."""
        return in_flight + size <= max(self._bytes, FEWEST_CHUNKS * size)

    @property
    def _bytes(self) -> float:
        if not self._round_trips:
            return 0.0
        return min(_GAIN * max(self._rates) * min(self._round_trips), MOST_BYTES)

    def send(self, in_flight: int, now: float) -> Stamp:
        """A chunk is sent now, while `in_flight` bytes are not answered yet."""
        return Stamp(now, self._answered, alone=in_flight == 0)

    def answer(self, sent: Stamp, size: int, now: float) -> None:
        """A chunk of `size` bytes, sent at `sent`, is answered now."""
        self._answered += size
        round_trip = max(now - sent.at, 1e-6)
        if sent.alone:
            self._round_trips.append(round_trip)
        self._rates.append((self._answered - sent.answered) / round_trip)
