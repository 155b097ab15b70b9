"""When a node serves a request: every state against every request."""

from pathlib import Path

import pytest

from swarm_tf.protocol.gate import Gate, State, diagram
from swarm_tf.protocol.messages import Kind, Message, Reason

RANK = 3
LOWER, HIGHER = 1, 5


def _request(sender):
    return Message(Kind.REQUEST, sender, 1)


def _gate_in(state, partner=None):
    """A blocking gate in `state`, brought there by its own methods."""
    gate = Gate(RANK, blocking=True)
    if state is not State.TRAINING:
        gate.reach_boundary()
    if state is State.REQUESTING:
        gate.start_request()
    if state is State.PAIRED:
        gate.pair(partner)
    assert gate.state is state
    return gate


@pytest.mark.parametrize(
    ("state", "sender", "verdict"),
    [
        (State.TRAINING, LOWER, False),
        (State.TRAINING, HIGHER, False),
        (State.FREE, LOWER, True),
        (State.FREE, HIGHER, True),
        (State.REQUESTING, LOWER, False),
        (State.REQUESTING, HIGHER, Reason.BUSY),
        (State.PAIRED, LOWER, True),  # its partner sends further chunks
        (State.PAIRED, HIGHER, False),
    ],
)
@pytest.mark.parametrize("crossed", [False, True])
def test_a_blocking_gate_admits_requests_as_in_the_table(state, sender, verdict, crossed):
    assert _gate_in(state, partner=LOWER).admit(_request(sender), crossed) is verdict


@pytest.mark.parametrize(
    ("sender", "crossed", "verdict"),
    [
        (LOWER, False, True),
        (HIGHER, False, True),
        (LOWER, True, True),  # the lower rank's request counts for both
        (HIGHER, True, Reason.CROSSED),
    ],
)
@pytest.mark.parametrize("method", ["reach_boundary", "leave_boundary", "start_request", None])
def test_a_nonblocking_gate_admits_all_but_crossed_requests(sender, crossed, verdict, method):
    gate = Gate(RANK, blocking=False)
    if method:
        getattr(gate, method)()
    assert gate.admit(_request(sender), crossed) is verdict


def test_of_two_crossed_requests_exactly_one_is_served():
    for a, b in [(0, 1), (1, 0), (2, 7)]:
        served = [Gate(a, False).admit(_request(b), True), Gate(b, False).admit(_request(a), True)]
        assert sorted(map(str, served)) == sorted(map(str, [True, Reason.CROSSED]))


def test_waiting_ranks_form_no_cycle():
    # A requesting node lets only lower ranks wait, so ranks rise along every chain of waiting.
    for rank in range(4):
        for sender in set(range(4)) - {rank}:
            gate = Gate(rank, blocking=True)
            gate.reach_boundary()
            gate.start_request()
            waits = gate.admit(_request(sender), crossed=False) is False
            assert waits == (sender < rank)


def test_the_states_of_a_gate_at_one_boundary():
    gate = Gate(RANK, blocking=True)
    gate.reach_boundary()
    assert (gate.state, gate.settled) == (State.FREE, False)
    gate.start_request()
    gate.pair(HIGHER)
    assert (gate.state, gate.partner) == (State.PAIRED, HIGHER)
    gate.end_exchange(settles=True)
    assert (gate.state, gate.partner) == (State.FREE, None)
    assert gate.settled
    gate.leave_boundary()
    assert (gate.state, gate.settled) == (State.TRAINING, False)


def test_a_busy_partner_leaves_the_boundary_open():
    gate = _gate_in(State.REQUESTING)
    gate.end_exchange(settles=False)
    assert gate.state is State.FREE
    assert not gate.settled
    gate.end_exchange(settles=True)
    gate.end_exchange(settles=False)
    assert gate.settled, "a later refusal does not undo an averaging"


def test_a_late_exchange_does_not_stop_training():
    gate = Gate(RANK, blocking=True)
    gate.pair(LOWER)
    assert gate.state is State.TRAINING
    gate.end_exchange(settles=True)
    assert gate.state is State.TRAINING


def test_reaching_a_boundary_twice_keeps_it_settled():
    gate = _gate_in(State.FREE)
    gate.end_exchange(settles=True)
    gate.reach_boundary()
    assert gate.settled


def test_crossed_and_busy_requests_are_not_failures():
    harmless = {reason for reason in Reason if not reason.is_failure}
    assert harmless == {Reason.NONE, Reason.CROSSED, Reason.BUSY}


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.NONE])
def test_every_reason_names_the_rank(reason):
    assert "rank 17" in reason.sentence(17)


def test_the_diagram_in_the_docs_is_that_of_the_gate():
    page = Path(__file__).parents[2] / "docs" / "protocol.md"
    assert diagram() in page.read_text()
