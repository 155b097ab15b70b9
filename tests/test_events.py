"""Counters and log lines are folds over events."""

import logging

import pytest

from swarm_tf.events import (
    BoundaryPassed,
    BytesSent,
    Counters,
    ExchangeEnded,
    ExchangeOverdue,
    ExchangeServed,
    MessageDropped,
    NotFinite,
    PartnersBusy,
    PartnerSilent,
    RankGone,
    RanksAveraged,
    log_line,
    merge,
)


def ended(**fields):
    return ExchangeEnded(1, 2, 40, 0.0, 0.5, payload_bytes=100, blocks=4, **fields)


def after(*events):
    counters = Counters()
    for event in events:
        counters = counters.after(event)
    return counters


def test_counters_add_up():
    one = Counters(exchanges=2, payload_bytes=100, staleness_sum=9, staleness_count=2)
    two = Counters(exchanges=3, payload_bytes=150, exposed_seconds=0.5)
    total = merge([one, two])
    assert total == Counters(
        exchanges=5, payload_bytes=250, exposed_seconds=0.5, staleness_sum=9, staleness_count=2
    )
    assert total.payload_bytes_per_exchange == 50
    assert total.staleness_mean == 4.5


def test_counters_of_nothing_are_zero():
    assert merge([]) == Counters()
    assert Counters().staleness_mean == 0
    assert Counters().payload_bytes_per_exchange == 0


@pytest.mark.parametrize(
    ("events", "counted"),
    [
        ([ended()], {"exchanges": 1, "payload_bytes": 100, "blocks_total": 4}),
        ([ended(failure="no", blocks_skipped=1)],
         {"exchanges_failed": 1, "blocks_total": 4, "blocks_skipped": 1}),
        ([ended(failure="busy", harmless=True)], {"blocks_total": 4}),
        ([ended(adopted=True)], {"adoptions": 1, "payload_bytes": 100, "blocks_total": 4}),
        # An overdue exchange counts as failed until its answer comes, and only once if none comes.
        ([ExchangeOverdue(2, 60.0)], {"exchanges_failed": 1}),
        ([ExchangeOverdue(2, 60.0), ended(overdue=True)],
         {"exchanges": 1, "payload_bytes": 100, "blocks_total": 4}),
        ([ExchangeOverdue(2, 60.0), ended(overdue=True, failure="no")],
         {"exchanges_failed": 1, "blocks_total": 4}),
        ([PartnersBusy(60.0)], {"exchanges_failed": 1}),
        ([ExchangeServed(2), ExchangeServed(3)], {"exchanges_served": 2}),
        ([BytesSent(7), BytesSent(8)], {"bytes_sent": 15}),
        ([MessageDropped()], {"messages_dropped": 1}),
        ([BoundaryPassed(0.5, (4, 5))],
         {"exposed_seconds": 0.5, "staleness_sum": 9, "staleness_count": 2}),
        ([RanksAveraged(0.25)], {"exchanges": 1, "exposed_seconds": 0.25}),
        ([NotFinite(3, 2), RankGone(2, "gone"), PartnerSilent(2)], {}),
    ],
)  # fmt: skip
def test_each_event_changes_its_counters(events, counted):
    assert after(*events) == Counters(**counted)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (ended(failure="rank 2 is away"), "rank 5: no exchange: rank 2 is away"),
        (ExchangeOverdue(2, 60.0), "rank 5 waited 60 s for rank 2; training goes on"),
        (PartnersBusy(60.0), "every rank that it asked in 60 s was itself waiting"),
        (PartnerSilent(2), "rank 5: rank 2 stopped sending its exchange"),
        (RankGone(2, "rank 2 has left"), "rank 5: rank 2 has left"),
        (NotFinite(7, 2), "its weights are NaN or Inf after step 7; it takes the model of rank 2"),
    ],
)
def test_unusual_events_are_logged_as_warnings(event, words):
    level, line = log_line(5, event)
    assert level == logging.WARNING
    assert words in line


@pytest.mark.parametrize(
    "event",
    [
        ended(),
        ended(failure="busy", harmless=True),
        ended(failure="known", explained=True),
        BytesSent(3),
        MessageDropped(),
        BoundaryPassed(1.0),
    ],
)
def test_usual_events_are_not_logged(event):
    assert log_line(5, event) is None
