"""Single exchanges: exact averages, late answers, copies of messages."""

import logging

import numpy as np
import pytest

from swarm_tf import codec as codecs
from tests.protocol.swarm import ROUNDING, Swarm, even_models, pair


@pytest.mark.parametrize("chunks", [1, 5])
def test_an_exchange_gives_both_the_exact_average(chunks):
    swarm = pair(chunks=chunks)
    a, b = even_models(swarm)
    swarm.request(0, 1)
    swarm.settle()
    for rank in (0, 1):
        swarm.apply(rank)
        np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)


def test_crossed_requests_average_once():
    for seed in range(20):
        swarm = pair(seed=seed, faults={"in_order": True})
        a, b = even_models(swarm)
        for rank in (0, 1):
            swarm.request(rank, 1 - rank)
            swarm.poll(rank)
        swarm.settle()
        for rank in (0, 1):
            swarm.apply(rank)
            np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)
        assert swarm.count("exchanges") == swarm.count("exchanges_served") == 1
        assert swarm.count("exchanges_failed") == 0
        assert len(swarm.nodes[0].take_ended()) == 1
        assert swarm.nodes[1].take_ended() == []
        assert swarm.nodes[1].view.pending_step is None


def test_crossed_requests_keep_the_mean_in_any_order():
    for seed in range(20):
        swarm = pair(seed=seed)
        before = swarm.distance()
        for rank in (0, 1):
            swarm.request(rank, 1 - rank)
            swarm.poll(rank)
        swarm.settle()
        assert swarm.drift() < ROUNDING
        for rank in (0, 1):
            swarm.apply(rank)
        # If a reply overtakes a request both exchanges happen; models never end further apart.
        assert swarm.distance() <= before * 1.000001


@pytest.mark.parametrize("mode", ["nonblocking", "blocking"])
def test_a_late_answer_still_applies(mode, caplog):
    swarm = pair(mode=mode, timeout_seconds=10)
    a, b = even_models(swarm)
    initiator = swarm.nodes[0]
    if mode == "blocking":
        swarm.nodes[1].finish(0)  # so that rank 1 can serve
    swarm.request(0, 1)
    swarm.poll(0)
    swarm.now += 11
    with caplog.at_level(logging.WARNING, "swarm_tf"):
        swarm.poll(0)
    assert "rank 0 waited 10 s for rank 1" in caplog.text
    assert initiator.view.pending_step is None, "another exchange may start"
    assert initiator.view.may_go_on
    assert initiator.view.unanswered == (1,)
    assert (initiator.counters.exchanges, initiator.counters.exchanges_failed) == (0, 1)
    if mode == "blocking":
        initiator.leave_boundary()
    swarm.settle()
    assert initiator.view.unanswered == ()
    assert (initiator.counters.exchanges, initiator.counters.exchanges_failed) == (1, 0)
    for rank in (0, 1):
        swarm.apply(rank)
        np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)
    assert [e.overdue for e in initiator.take_ended()] == [True]


def test_a_partner_that_has_not_answered_gets_no_second_request():
    swarm = pair(timeout_seconds=10)
    swarm.request(0, 1)
    swarm.poll(0)
    swarm.now += 11
    swarm.poll(0)
    swarm.request(0, 1)
    swarm.poll(0)
    (failed,) = swarm.nodes[0].take_ended()
    assert "rank 1 has not answered" in failed.failure
    swarm.settle()
    assert swarm.count("exchanges") == 1


def test_another_exchange_starts_beside_a_late_one_and_both_apply():
    swarm = Swarm(3, codecs.build("float32"))
    node = swarm.nodes[0]
    swarm.request(0, 1)
    swarm.poll(0)
    assert (node.view.pending_step, node.view.outstanding) == (0, 1)
    swarm.steps[0] = 7
    swarm.request(0, 2)
    swarm.poll(0)
    assert (node.view.pending_step, node.view.outstanding) == (7, 2)
    assert node.view.unanswered == (1, 2)
    assert node.counters.exchanges_late == 1
    # The late partner may itself request an exchange meanwhile.
    swarm.request(1, 0)
    swarm.poll(1)
    swarm.settle()
    assert swarm.drift() < ROUNDING
    assert (node.counters.exchanges, node.counters.exchanges_failed) == (2, 0)
    assert sorted(e.partner for e in node.take_ended()) == [1, 2]
    assert node.view.pending_step is None


def test_copies_of_a_request_are_applied_once():
    swarm = pair(repeat_seconds=1.0)
    a, b = even_models(swarm)
    swarm.request(0, 1)
    swarm.poll(0)
    (to, head, payload) = swarm.network.in_flight[0]
    swarm.network.in_flight += [(to, head, payload.copy())] * 3
    swarm.settle()
    for rank in (0, 1):
        swarm.apply(rank)
        np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)
    # A copy that comes after the next exchange is ignored too.
    swarm.request(0, 1)
    swarm.settle()
    swarm.network.in_flight.append((to, head, payload.copy()))
    swarm.settle()
    assert swarm.drift() == 0


def test_an_exchange_reports_its_staleness_and_payload():
    swarm = pair(chunks=3)
    swarm.steps[0] = 17
    swarm.request(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_ended()
    assert (exchange.partner, exchange.step, exchange.failure) == (1, 17, "")
    assert exchange.payload_bytes == 4 * sum(swarm.lengths)
    assert (exchange.blocks, exchange.blocks_skipped) == (3, 0)
    assert swarm.nodes[0].counters.payload_bytes == exchange.payload_bytes
