"""The window of an exchange: it fills a link of any length, and does not queue much more."""

import heapq
from itertools import count

import pytest

from swarm_tf.protocol.window import FEWEST_CHUNKS, MOST_BYTES, Window

SIZE = 1_000_000  # bytes of a chunk


def transfer(window, chunks, *, delay, rate, size=SIZE):
    """Sends chunks over a link that carries `rate` bytes a second and adds `delay` seconds.

    Returns:
      (seconds from the first chunk sent to the last one answered, most bytes in flight).
    """
    now, free_at, sent, in_flight, most = 0.0, 0.0, 0, 0, 0
    answers, order = [], count()
    while sent < chunks or answers:
        while sent < chunks and (not in_flight or window.allows(in_flight, size)):
            free_at = max(free_at, now) + size / rate
            stamp = window.send(in_flight, now)
            heapq.heappush(answers, (free_at + delay, next(order), stamp))
            in_flight += size
            sent += 1
            most = max(most, in_flight)
        now, _, stamp = heapq.heappop(answers)
        in_flight -= size
        window.answer(stamp, size, now)
    return now, most


@pytest.mark.parametrize(
    ("delay", "rate"),
    [(delay, rate) for delay in (0.0, 0.001, 0.1, 0.5) for rate in (1e7, 1e8)] + [(0.1, 1e9)],
)
def test_it_fills_the_link(delay, rate):
    window = Window()
    in_link = delay * rate + SIZE
    for _ in range(20):
        transfer(window, 100, delay=delay, rate=rate)
    chunks = 20 * max(1, round(in_link / SIZE))
    seconds, most = transfer(window, chunks, delay=delay, rate=rate)
    best = delay + chunks * SIZE / rate
    assert seconds < 1.1 * best
    assert most <= max(FEWEST_CHUNKS * SIZE, 1.5 * in_link + 4 * SIZE)


def test_a_new_window_is_three_chunks():
    window = Window()
    assert window.allows(0, SIZE)
    assert window.allows(2 * SIZE, SIZE)
    assert not window.allows(3 * SIZE, SIZE)
    assert window.allows(2 * 100, 100)
    assert not window.allows(3 * 100, 100)


def test_it_becomes_smaller_when_the_link_does():
    window = Window()
    for _ in range(20):
        transfer(window, 100, delay=0.1, rate=1e9)
    _, before = transfer(window, 200, delay=0.1, rate=1e9)
    for _ in range(20):
        transfer(window, 100, delay=0.1, rate=1e7)
    _, after = transfer(window, 200, delay=0.1, rate=1e7)
    assert before > 90 * SIZE
    assert after <= 7 * SIZE


def test_it_has_a_limit():
    window = Window()
    for _ in range(20):
        _, most = transfer(window, 1000, delay=10.0, rate=1e9)
    assert MOST_BYTES - SIZE <= most <= MOST_BYTES
