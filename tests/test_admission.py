"""When a node serves a request: every state against every request."""

import pytest

from swarm_tf.protocol.gate import Admission, State
from swarm_tf.protocol.messages import Reason

RANK = 3
LOWER, HIGHER = 1, 5


def _standing(state, partner=None):
    """A blocking node in `state`, taken there by its own methods."""
    admission = Admission(RANK, blocking=True)
    if state is not State.TRAINING:
        admission.reach()
    if state is State.ASKING:
        admission.ask()
    if state is State.PAIRED:
        admission.pair(partner)
    assert admission.state is state
    return admission


@pytest.mark.parametrize(
    ("state", "sender", "verdict"),
    [
        (State.TRAINING, LOWER, False),
        (State.TRAINING, HIGHER, False),
        (State.FREE, LOWER, True),
        (State.FREE, HIGHER, True),
        (State.ASKING, LOWER, False),
        (State.ASKING, HIGHER, Reason.BUSY),
        (State.PAIRED, LOWER, True),  # its partner: further chunks
        (State.PAIRED, HIGHER, False),
    ],
)
@pytest.mark.parametrize("crossed", [False, True])
def test_blocking_table(state, sender, verdict, crossed):
    assert _standing(state, partner=LOWER).admit(sender, crossed) is verdict


@pytest.mark.parametrize(
    ("sender", "crossed", "verdict"),
    [
        (LOWER, False, True),
        (HIGHER, False, True),
        (LOWER, True, True),  # the lower rank's request stands for both
        (HIGHER, True, Reason.CROSSED),
    ],
)
@pytest.mark.parametrize("method", ["reach", "leave", "ask", None])
def test_not_blocking_admits_all_but_crossed_requests(sender, crossed, verdict, method):
    admission = Admission(RANK, blocking=False)
    if method:
        getattr(admission, method)()
    assert admission.admit(sender, crossed) is verdict


def test_of_two_crossed_requests_exactly_one_is_served():
    for a, b in [(0, 1), (1, 0), (2, 7)]:
        served = [Admission(a, False).admit(b, True), Admission(b, False).admit(a, True)]
        assert sorted(map(str, served)) == sorted(map(str, [True, Reason.CROSSED]))


def test_waiting_ranks_form_no_cycle():
    # An asking node lets only lower ranks wait, so every chain of waiting ranks rises.
    for rank in range(4):
        for sender in set(range(4)) - {rank}:
            admission = Admission(rank, blocking=True)
            admission.reach()
            admission.ask()
            waits = admission.admit(sender, crossed=False) is False
            assert waits == (sender < rank)


def test_a_boundary_from_end_to_end():
    admission = Admission(RANK, blocking=True)
    admission.reach()
    assert (admission.state, admission.averaged) == (State.FREE, False)
    admission.ask()
    admission.pair(HIGHER)
    assert (admission.state, admission.partner) == (State.PAIRED, HIGHER)
    admission.part(averaged=True)
    assert (admission.state, admission.partner) == (State.FREE, None)
    assert admission.averaged
    admission.leave()
    assert (admission.state, admission.averaged) == (State.TRAINING, False)


def test_a_busy_partner_leaves_the_boundary_open():
    admission = _standing(State.ASKING)
    admission.part(averaged=False)
    assert admission.state is State.FREE
    assert not admission.averaged
    admission.part(averaged=True)
    admission.part(averaged=False)
    assert admission.averaged, "a later refusal does not undo an averaging"


def test_a_late_exchange_does_not_stop_training():
    admission = Admission(RANK, blocking=True)
    admission.pair(LOWER)
    assert admission.state is State.TRAINING
    admission.part(averaged=True)
    assert admission.state is State.TRAINING


def test_reaching_twice_keeps_what_happened_at_the_boundary():
    admission = _standing(State.FREE)
    admission.part(averaged=True)
    admission.reach()
    assert admission.averaged


def test_only_true_failures_count_as_failures():
    harmless = {reason for reason in Reason if not reason.is_failure}
    assert harmless == {Reason.NONE, Reason.CROSSED, Reason.BUSY}


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.NONE])
def test_every_reason_names_the_rank(reason):
    assert "rank 17" in reason.sentence(17)
