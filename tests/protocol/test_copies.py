"""Messages of each kind that arrive twice, early or late, on a lossy or a reliable network."""

import numpy as np
import pytest

from swarm_tf.protocol.gate import State
from swarm_tf.protocol.messages import Kind, Message, Reason
from swarm_tf.protocol.node import MODES
from tests.protocol.swarm import even_models, pair

LOSSY, RELIABLE = 1.0, None
transports = pytest.mark.parametrize("repeat_seconds", [LOSSY, RELIABLE], ids=["lossy", "reliable"])


def sent(swarm, rank, kind):
    """The messages of one kind that a node sends now."""
    return [message for _, message in swarm.nodes[rank].poll() if message.kind is kind]


def handle_twice(swarm, rank, message):
    """The answers of a node to a message and to its copy."""
    return [[m for _, m in swarm.nodes[rank].handle(message)] for _ in range(2)]


def assert_same_answer(one, other):
    """Asserts that two answers are the same, number by number."""
    assert (one.kind, one.chunk, one.reason) == (other.kind, other.chunk, other.reason)
    if one.encoded is not None:
        np.testing.assert_array_equal(one.encoded.payload, other.encoded.payload)


def models(swarm):
    """The models after all corrections."""
    for rank in range(swarm.size):
        swarm.apply(rank)
    return [np.concatenate(model) for model in swarm.models]


def request_between(swarm):
    """The request of rank 0 to rank 1, which is ready to serve."""
    if swarm.mode == "blocking":
        swarm.nodes[1].finish(0)
    swarm.request(0, 1)
    (request,) = sent(swarm, 0, Kind.REQUEST)
    return request


@transports
@pytest.mark.parametrize("mode", MODES)
def test_a_request_and_a_reply_are_applied_once(mode, repeat_seconds):
    swarm = pair(mode=mode, repeat_seconds=repeat_seconds)
    a, b = even_models(swarm)
    request = request_between(swarm)
    (reply,), again = handle_twice(swarm, 1, request)
    if repeat_seconds is LOSSY:
        assert_same_answer(*again, reply)
    else:
        assert again == []
    assert handle_twice(swarm, 0, reply) == [[], []]
    mine, theirs = models(swarm)
    np.testing.assert_array_equal(mine, (a + b) / 2)
    np.testing.assert_array_equal(theirs, b if mode == "pull" else (a + b) / 2)
    # The exchange is over, and still the latest of rank 0.
    late = [m for _, m in swarm.nodes[1].handle(request)]
    assert len(late) == (repeat_seconds is LOSSY)
    np.testing.assert_array_equal(models(swarm)[1], theirs)


@transports
def test_a_request_of_an_earlier_exchange_gets_no_answer(repeat_seconds):
    swarm = pair(repeat_seconds=repeat_seconds)
    even_models(swarm)
    first = request_between(swarm)
    handle_twice(swarm, 0, handle_twice(swarm, 1, first)[0][0])
    second = request_between(swarm)
    assert second.exchange > first.exchange
    swarm.nodes[1].handle(second)
    assert handle_twice(swarm, 1, first) == [[], []]


@transports
def test_a_request_that_waits_is_queued_once(repeat_seconds):
    swarm = pair(mode="blocking", repeat_seconds=repeat_seconds)
    a, b = even_models(swarm)
    swarm.request(0, 1)
    (request,) = sent(swarm, 0, Kind.REQUEST)
    assert handle_twice(swarm, 1, request) == [[], []], "rank 1 trains, so the request waits"
    assert len(swarm.nodes[1].gate.waiting) == 1
    swarm.nodes[1].finish(0)
    assert len(sent(swarm, 1, Kind.REPLY)) == 1
    np.testing.assert_array_equal(models(swarm)[1], (a + b) / 2)


@transports
def test_a_refusal_ends_an_exchange_once(repeat_seconds):
    swarm = pair(repeat_seconds=repeat_seconds)
    request = request_between(swarm)
    swarm.nodes[1].close()
    (refusal,), again = handle_twice(swarm, 1, request)
    assert (refusal.kind, refusal.reason) == (Kind.REFUSE, Reason.CLOSED)
    assert len(again) == (repeat_seconds is LOSSY)
    assert handle_twice(swarm, 0, refusal) == [[], []]
    assert len(swarm.nodes[0].take_ended()) == 1


@transports
def test_a_cancellation_does_not_end_a_later_pairing(repeat_seconds):
    swarm = pair(mode="blocking", chunks=4, repeat_seconds=repeat_seconds)
    request = request_between(swarm)
    swarm.nodes[1].handle(request)
    assert swarm.nodes[1].gate.state is State.PAIRED
    cancel = Message(Kind.CANCEL, 0, request.exchange, 1, reason=Reason.NOT_FINITE)
    ((_, refusal),) = swarm.nodes[1].handle(cancel)
    assert (refusal.kind, refusal.chunk) == (Kind.REFUSE, 1)
    assert swarm.nodes[1].gate.state is State.FREE
    swarm.nodes[1].gate.pair(0)  # in an exchange that rank 1 has requested meanwhile
    copy = [m for _, m in swarm.nodes[1].handle(cancel)]
    assert len(copy) == (repeat_seconds is LOSSY)
    assert swarm.nodes[1].gate.state is State.PAIRED


@transports
def test_a_model_is_sent_for_each_copy_of_a_request_and_adopted_once(repeat_seconds):
    swarm = pair(repeat_seconds=repeat_seconds)
    swarm.models[0][0][5] = np.nan
    swarm.apply(0)
    swarm.nodes[0].request(1, 0, adopt=True)
    (adopt,) = sent(swarm, 0, Kind.ADOPT)
    (first,), (second,) = handle_twice(swarm, 1, adopt)
    assert_same_answer(first, second)
    assert handle_twice(swarm, 0, first) == [[], []]
    assert len(swarm.nodes[0].take_adopted()) == 1
    assert swarm.nodes[0].take_adopted() is None
    assert len(swarm.nodes[0].take_ended()) == 1


def test_a_rank_leaves_once_and_each_heartbeat_is_answered():
    swarm = pair()
    done = Message(Kind.DONE, 0, step=7, reason=Reason.FAILED)
    assert handle_twice(swarm, 1, done) == [[], []]
    assert swarm.nodes[1].counters.messages_dropped == 0
    assert swarm.nodes[1].view.failed == {0}
    answers = handle_twice(swarm, 1, Message(Kind.PING, 0))
    assert [[m.kind for m in out] for out in answers] == [[Kind.PONG], [Kind.PONG]]


def test_an_old_message_does_not_lower_the_step_of_its_sender():
    swarm = pair()
    for step in (5, 9, 5):
        swarm.nodes[1].handle(Message(Kind.PONG, 0, step=step))
    assert swarm.nodes[1].membership.last_seen[0][1] == 9


@transports
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reason", [Reason.FAILED, Reason.LEFT])
def test_a_request_of_a_rank_that_left_is_not_served(mode, reason, repeat_seconds):
    """Nor is a copy of a request that waited: this node would average without a partner."""
    swarm = pair(mode=mode, repeat_seconds=repeat_seconds)
    _, b = even_models(swarm)
    swarm.request(0, 1)
    (request,) = sent(swarm, 0, Kind.REQUEST)
    if mode == "blocking":
        assert handle_twice(swarm, 1, request) == [[], []], "the request waits"
    swarm.nodes[1].handle(Message(Kind.DONE, 0, reason=reason))
    assert handle_twice(swarm, 1, request) == [[], []]
    swarm.nodes[1].finish(0)
    assert sent(swarm, 1, Kind.REPLY) == []
    np.testing.assert_array_equal(models(swarm)[1], b)
