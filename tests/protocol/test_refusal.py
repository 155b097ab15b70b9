"""Requests that are refused, and why."""

import numpy as np
import pytest
import tensorflow as tf

from swarm_tf import codec as codecs
from swarm_tf.codec import BLOCK
from swarm_tf.protocol.gate import State
from swarm_tf.protocol.messages import Kind, Message, Reason
from tests.protocol.swarm import ROUNDING, Observed, channels, pair


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bad_rank", [0, 1], ids=["initiator", "responder"])
@pytest.mark.parametrize("mode", ["nonblocking", "pull"])
def test_nan_is_refused_with_the_reason_and_nothing_changes(bad, bad_rank, mode):
    swarm = pair("lattice", mode)
    swarm.models[bad_rank][0][BLOCK + 5] = bad
    swarm.apply(bad_rank)
    before = swarm.models[1 - bad_rank][0].copy()
    swarm.request(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_ended()
    assert exchange.failure == f"the weights of rank {bad_rank} contain NaN or Inf"
    assert (swarm.count("exchanges"), swarm.count("exchanges_failed")) == (0, 1)
    swarm.apply(1 - bad_rank)
    np.testing.assert_array_equal(swarm.models[1 - bad_rank][0], before)


@pytest.mark.parametrize("bad_rank", [0, 1], ids=["initiator", "responder"])
def test_nan_in_a_later_chunk_leaves_that_chunk_and_the_mean_as_they_were(bad_rank):
    """Chunks before it may have been averaged, but only on both sides."""
    swarm = pair(chunks=4)
    swarm.models[bad_rank][2][5] = np.nan
    swarm.apply(bad_rank)
    before = [[chunk.copy() for chunk in model] for model in swarm.models]
    swarm.request(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_ended()
    assert exchange.failure == f"the weights of rank {bad_rank} contain NaN or Inf"
    assert (swarm.count("exchanges"), swarm.count("exchanges_failed")) == (0, 1)
    for rank in range(2):
        swarm.apply(rank)
    other = 1 - bad_rank
    np.testing.assert_array_equal(swarm.models[other][2], before[other][2])
    for chunk in (0, 1, 3):
        mean = (before[0][chunk] + before[1][chunk]) / 2
        after = (swarm.models[0][chunk] + swarm.models[1][chunk]) / 2
        np.testing.assert_allclose(after, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad_rank", [0, 1], ids=["initiator", "responder"])
def test_nan_in_a_later_chunk_does_not_hold_the_responder(bad_rank):
    """In blocking mode, an exchange that has ended for the initiator ends for the responder too."""
    swarm = pair(mode="blocking", chunks=4)
    swarm.models[bad_rank][2][5] = np.nan
    swarm.apply(bad_rank)
    swarm.request(0, 1)
    swarm.poll(0)
    swarm.nodes[1].finish(0)
    swarm.settle()
    assert swarm.nodes[0].view.may_go_on
    assert swarm.nodes[1].gate.state is State.FREE


def test_a_request_that_comes_after_the_cancellation_is_refused():
    """A network may reorder them. The request must not occupy a node that serves one partner."""
    swarm = pair(mode="blocking", chunks=4)
    swarm.nodes[1].finish(0)
    swarm.request(0, 1)
    swarm.poll(0)
    while (taken := swarm.network.take())[1].kind is not Kind.REQUEST:
        pass
    request = taken[1]
    cancel = Message(Kind.CANCEL, 0, request.exchange, 1, reason=Reason.NOT_FINITE)
    ((_, acknowledged),) = swarm.nodes[1].handle(cancel)
    assert (acknowledged.kind, acknowledged.chunk) == (Kind.REFUSE, 1)
    ((to, answer),) = swarm.nodes[1].handle(request)
    assert (to, answer.kind, answer.reason) == (0, Kind.REFUSE, Reason.NOT_FINITE)
    assert swarm.nodes[1].gate.state is State.FREE


def test_a_cancellation_that_is_lost_is_repeated():
    """Otherwise the responder would be occupied by the exchange until the deadline."""
    swarm = pair(mode="blocking", chunks=4, repeat_seconds=1.0)
    swarm.models[0][2][5] = np.nan
    swarm.apply(0)
    swarm.nodes[1].finish(0)
    swarm.request(0, 1)
    lost = 0
    for _ in range(200):
        for rank in range(2):
            swarm.poll(rank)
        while swarm.network.in_flight:
            to, message = swarm.network.take()
            if message.kind is Kind.CANCEL and lost < 3:
                lost += 1
                continue
            swarm.network.send(swarm.nodes[to].handle(message))
        if not swarm.nodes[0].view.unanswered:
            break
        swarm.now += 0.5
    assert lost == 3
    assert swarm.now < 10 < swarm.nodes[1].timeout_seconds
    assert swarm.nodes[1].gate.state is State.FREE
    (exchange,) = swarm.nodes[0].take_ended()
    assert exchange.failure == "the weights of rank 0 contain NaN or Inf"


def test_a_node_exchanges_again_once_its_weights_are_finite():
    swarm = pair()
    swarm.models[1][0][7] = np.nan
    swarm.apply(1)
    swarm.request(0, 1)
    swarm.settle()
    swarm.models[1][0][7] = 0.0
    swarm.apply(1)
    swarm.request(0, 1)
    swarm.settle()
    assert swarm.count("exchanges") == 1


@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
def test_a_closed_node_refuses_at_once(mode):
    swarm = pair(mode=mode)
    swarm.nodes[1].close()
    swarm.request(0, 1)
    swarm.poll(0)
    swarm.settle(turns=3)
    (exchange,) = swarm.nodes[0].take_ended()
    assert exchange.failure == "rank 1 is shutting down"
    assert swarm.nodes[0].view.may_go_on
    assert swarm.drift() == 0


def test_a_node_that_closes_refuses_waiting_requests():
    swarm = pair(mode="blocking")
    swarm.request(0, 1)
    swarm.poll(0)
    swarm.deliver()
    assert not swarm.nodes[0].view.may_go_on, "rank 0 must wait while rank 1 trains"
    swarm.nodes[1].close()
    swarm.settle(turns=3)
    (exchange,) = swarm.nodes[0].take_ended()
    assert exchange.failure == "rank 1 is shutting down"


def test_another_codec_is_refused():
    # The first exchange of a lattice is exact, so the codecs differ from the second on.
    swarm = pair("lattice")
    swarm.request(0, 1)
    swarm.settle()
    swarm.nodes[1].replica.channels = channels(codecs.build("lattice", 7), swarm.lengths)
    swarm.nodes[0].take_ended()
    swarm.request(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_ended()
    assert exchange.failure == Reason.OTHER_CODEC.sentence(1)
    assert swarm.drift() < ROUNDING


@pytest.mark.parametrize("lengths", [[BLOCK], [BLOCK + 100, 7]])
def test_another_model_is_refused(lengths):
    swarm = pair()
    stranger = Observed(0, 2, channels(codecs.build("float32"), lengths))
    stranger.replica.publish([tf.zeros([n]) for n in lengths])
    stranger.request(1, 0)
    _, request = stranger.poll()[0]
    if len(lengths) > 1:  # with one chunk, number 1 is the exact retry of chunk 0
        request = Message(Kind.REQUEST, 0, 1, chunk=2, encoded=request.encoded)
    ((to, answer),) = swarm.nodes[1].handle(request)
    assert (to, answer.kind, answer.reason) == (0, Kind.REFUSE, Reason.OTHER_MODEL)
    assert swarm.drift() == 0


def test_blocks_beyond_float16_are_skipped_without_a_retry():
    """An exact retry is only for blocks that a lattice cannot read."""
    swarm = pair("float16")
    for rank, model in enumerate(swarm.models):
        model[0] *= np.float32(1e6)
        swarm.apply(rank)
    swarm.request(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_ended()
    assert not exchange.failure
    assert exchange.blocks_skipped == exchange.blocks > 0
