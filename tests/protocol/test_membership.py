"""Signs of life, the end of a node's steps, and nodes that leave."""

import numpy as np
import pytest

from swarm_tf import codec as codecs
from swarm_tf.protocol.messages import Kind, Reason
from tests.protocol.swarm import CODECS, Swarm, even, exchange_of, pair


@pytest.mark.parametrize("reason", [Reason.FAILED, Reason.LEFT])
@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
def test_one_that_parts_is_waited_for_by_nobody(mode, reason):
    swarm = Swarm(3, codecs.build("float32"), mode)
    for rank in (0, 1):
        swarm.ask(rank, 2)
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
        swarm.ask(rank, 2)
        swarm.poll(rank)
        assert node.view.may_go_on, "an exchange with it is over at once"
    before = swarm.now
    for rank in (0, 1):
        swarm.nodes[rank].finish(1)
    swarm.nodes[0].leave_boundary()
    swarm.ask(0, 1)
    swarm.settle()
    assert swarm.now == before
    assert swarm.count("exchanges") >= 1


def test_a_signal_that_comes_while_one_waits_for_others_reaches_them():
    swarm = pair()
    swarm.nodes[0].finish(5)
    swarm.settle()
    assert not swarm.nodes[1].view.stop_requested
    swarm.nodes[0].request_stop()
    swarm.settle()
    assert swarm.nodes[1].view.stop_requested


def test_a_finished_node_tells_all_and_asks_after_the_missing():
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


def test_a_lost_done_is_asked_for():
    swarm = Swarm(2, codecs.build("float32"))
    for node in swarm.nodes:
        node.finish(1)
        node.poll()  # lost
    swarm.now += 2
    swarm.settle()
    assert [n.view.done for n in swarm.nodes] == [{0, 1}, {0, 1}]


@pytest.mark.parametrize("announced", ["at once", "on a heartbeat"])
def test_a_signal_to_one_ends_all(announced):
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


def test_who_is_done_ends_nobody_else():
    swarm = Swarm(3, codecs.build("float32"))
    swarm.nodes[0].finish(5)
    swarm.settle()
    assert not any(node.view.stop_requested for node in swarm.nodes)


@pytest.mark.parametrize("name", ["float32", "lattice8"])
@pytest.mark.parametrize("chunks", [1, 5])
def test_one_that_ended_earlier_follows_and_holds_nobody_back(name, chunks):
    swarm = Swarm(2, codecs.build(*CODECS[name]), chunks=chunks)
    a, b = (np.concatenate(m) for m in swarm.models)
    swarm.nodes[1].finish(50)
    swarm.settle()  # node 0 knows of it
    far = np.abs(a - b).max()
    for step in (51, 60, 70, 80, 90):
        swarm.steps[0] = step
        assert not exchange_of(swarm, 0, 1).failure
        np.testing.assert_array_equal(np.concatenate(swarm.models[0]), a)
        now = np.abs(np.concatenate(swarm.models[1]) - a).max()
        assert now < 0.6 * far
        far = now


def test_one_that_ended_later_weighs_as_any_other():
    swarm = pair()
    a, b = even(swarm)
    swarm.nodes[1].finish(50)
    swarm.settle()
    swarm.steps[0] = 50
    exchange_of(swarm, 0, 1)
    for model in swarm.models:
        np.testing.assert_array_equal(np.concatenate(model), (a + b) / 2)
