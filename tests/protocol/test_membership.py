"""Heartbeats, nodes that finish their steps, and nodes that leave."""

import numpy as np
import pytest

from swarm_tf import codec as codecs
from swarm_tf.protocol.messages import Kind, Reason
from tests.protocol.swarm import CODECS, ROUNDING, Swarm, even_models, pair, run_exchange


@pytest.mark.parametrize("reason", [Reason.FAILED, Reason.LEFT])
@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
def test_no_node_waits_for_a_node_that_left(mode, reason):
    swarm = Swarm(3, codecs.build("float32"), mode)
    for rank in (0, 1):
        swarm.request(rank, 2)
        swarm.poll(rank)
    swarm.nodes[2].leave_swarm(reason)
    assert not swarm.nodes[2].view.has_announced
    swarm.settle()
    assert swarm.nodes[2].view.has_announced
    for rank in (0, 1):
        node = swarm.nodes[rank]
        assert node.view.failed | node.view.left == {2}
        assert node.view.may_go_on
        assert node.view.unanswered == ()
        assert 2 in node.view.done
        (exchange,) = node.take_ended()
        assert exchange.failure
        node.leave_boundary()
        swarm.apply(rank)
        swarm.request(rank, 2)
        swarm.poll(rank)
        assert node.view.may_go_on, "an exchange with a node that left ends at once"
    before = swarm.now
    for rank in (0, 1):
        swarm.nodes[rank].finish(1)
    swarm.nodes[0].leave_boundary()
    swarm.request(0, 1)
    swarm.settle()
    assert swarm.now == before
    assert swarm.count("exchanges") >= 1


def test_a_signal_to_a_node_that_waits_at_the_end_reaches_the_others():
    swarm = pair()
    swarm.nodes[0].finish(5)
    swarm.settle()
    assert not swarm.nodes[1].view.stop_requested
    swarm.nodes[0].request_stop()
    swarm.settle()
    assert swarm.nodes[1].view.stop_requested


def test_a_finished_node_announces_it_and_sends_heartbeats_to_the_others():
    swarm = Swarm(3, codecs.build("float32"))
    swarm.nodes[0].finish(5)
    out = swarm.nodes[0].poll()
    assert [(to, m.kind) for to, m in out] == [(1, Kind.DONE), (2, Kind.DONE)]
    assert swarm.nodes[0].poll() == []
    swarm.nodes[1].handle(out[0][1])
    assert swarm.nodes[1].view.done == {0}
    swarm.nodes[1].step = 7
    swarm.now += 2
    for to, message in swarm.nodes[0].poll():
        assert message.kind is Kind.PING
        for _, pong in swarm.nodes[to].handle(message):
            assert pong.kind is Kind.PONG
            swarm.nodes[0].handle(pong)
    assert swarm.nodes[0].membership.last_seen[1] == (2.0, 7)


def test_a_lost_done_message_is_made_up_for_by_heartbeats():
    swarm = Swarm(2, codecs.build("float32"))
    for node in swarm.nodes:
        node.finish(1)
        node.poll()  # lost
    swarm.now += 2
    swarm.settle()
    assert [n.view.done for n in swarm.nodes] == [{0, 1}, {0, 1}]


@pytest.mark.parametrize("announced", ["at once", "on a heartbeat"])
def test_a_signal_to_one_node_stops_all(announced):
    swarm = Swarm(3, codecs.build("float32"))
    swarm.nodes[0].finish(5, stop=True)
    if announced == "on a heartbeat":
        swarm.nodes[0].poll()  # lost
        for node in swarm.nodes[1:]:
            node.finish(6)
            node.poll()
            swarm.now += 2
    swarm.settle()
    assert all(node.view.stop_requested for node in swarm.nodes)


def test_a_node_that_is_done_stops_no_other():
    swarm = Swarm(3, codecs.build("float32"))
    swarm.nodes[0].finish(5)
    swarm.settle()
    assert not any(node.view.stop_requested for node in swarm.nodes)


@pytest.mark.parametrize("name", ["float32", "lattice8"])
@pytest.mark.parametrize("chunks", [1, 5])
def test_a_node_that_finished_earlier_follows_and_does_not_move_others(name, chunks):
    swarm = Swarm(2, codecs.build(*CODECS[name]), chunks=chunks)
    a, b = (np.concatenate(m) for m in swarm.models)
    swarm.nodes[1].finish(50)
    swarm.settle()  # node 0 knows of it
    distance = np.abs(a - b).max()
    for step in (51, 60, 70, 80, 90):
        swarm.steps[0] = step
        assert not run_exchange(swarm, 0, 1).failure
        np.testing.assert_array_equal(np.concatenate(swarm.models[0]), a)
        now = np.abs(np.concatenate(swarm.models[1]) - a).max()
        assert now < 0.6 * distance
        distance = now


def test_a_done_that_overtakes_a_reply_withholds_nothing():
    """The partner averaged while it still trained: both sides apply their halves."""
    swarm = pair()
    a, b = even_models(swarm)
    swarm.steps = [50, 49]
    swarm.request(0, 1)
    ((_, request),) = swarm.nodes[0].poll()
    ((_, reply),) = swarm.nodes[1].handle(request)
    swarm.nodes[1].finish(49)
    ((_, done),) = swarm.nodes[1].poll()
    swarm.nodes[0].handle(done)
    swarm.nodes[0].handle(reply)
    assert swarm.drift() < ROUNDING
    for rank in (0, 1):
        swarm.apply(rank)
        np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)


def test_a_node_that_finished_at_no_earlier_step_is_averaged_as_usual():
    swarm = pair()
    a, b = even_models(swarm)
    swarm.nodes[1].finish(50)
    swarm.settle()
    swarm.steps[0] = 50
    run_exchange(swarm, 0, 1)
    for model in swarm.models:
        np.testing.assert_array_equal(np.concatenate(model), (a + b) / 2)
