"""Blocking mode, the paper's Algorithm 1: exact averages of pairs, and no deadlock."""

import logging

import numpy as np
import pytest

from swarm_tf import codec as codecs
from swarm_tf.protocol.gate import State
from tests.protocol.swarm import (
    CODECS,
    FAULTS,
    ROUNDING,
    Blocking,
    Swarm,
    even_models,
    on_a_ring,
    pair,
)


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("who", ["first", "second", "both"])
def test_blocking_leaves_both_with_the_exact_average(chunks, who):
    for seed in range(10):
        swarm = Swarm(2, codecs.build("float32"), "blocking", chunks=chunks, seed=seed)
        a, b = even_models(swarm)
        order = {"first": [0, 1], "second": [1, 0], "both": [0, 1]}[who]
        for rank in order:
            swarm.request(rank, 1 - rank)
            swarm.poll(rank)
            if who != "both":
                for _ in range(len(swarm.network.in_flight)):
                    swarm.deliver()
                if rank == order[0]:
                    assert not swarm.nodes[rank].view.may_go_on, (
                        "the node must wait for the average"
                    )
        swarm.settle()
        for rank in (0, 1):
            node = swarm.nodes[rank]
            assert node.view.may_go_on
            if not node.view.settled:  # refused by a busy partner, and then not served
                pytest.fail("a rank has got no average")
            node.leave_boundary()
            swarm.apply(rank)
            np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)
        assert swarm.count("exchanges") == swarm.count("exchanges_served") == 1


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("ring", [False, True], ids=["complete", "ring"])
@pytest.mark.parametrize("seed", range(3))
def test_blocking_never_deadlocks(size, ring, seed):
    swarm = Blocking(size, codecs.build("float32"), seed=seed)
    if ring:
        on_a_ring(swarm)
    swarm.run()
    assert swarm.drift() < ROUNDING
    assert swarm.count("exchanges_failed") == 0
    assert swarm.count("exchanges") == swarm.count("exchanges_served") > 0


@pytest.mark.parametrize("size", [3, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_a_cycle_of_simultaneous_requests_does_not_deadlock(size, seed):
    """Every node of a ring requests from the next one at once; then the order is random."""
    swarm = Blocking(size, codecs.build("float32"), seed=seed, boundaries=3)
    on_a_ring(swarm)
    for rank in range(size):
        swarm.train(rank, 0.003)
        swarm.apply(rank)
        swarm.nodes[rank].request((rank + 1) % size, 1)
        swarm.at_boundary[rank] = True
    for rank in range(size):
        swarm.poll(rank)
    assert len(swarm.network.in_flight) == size
    swarm.run()
    assert swarm.drift() < ROUNDING


@pytest.mark.parametrize("seed", range(3))
def test_blocking_with_a_slow_node_keeps_the_mean(seed):
    weights = np.array([1.0, 1.0, 0.1, 1.0])
    swarm = Blocking(4, codecs.build("float32"), seed=seed)
    on_a_ring(swarm)
    swarm.run(weights=weights / weights.sum())
    assert swarm.drift() < ROUNDING


@pytest.mark.parametrize(
    "name", ["float32", "lattice4", pytest.param("lattice8", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("faults", [None, FAULTS], ids=["reliable", "faulty"])
def test_blocking_with_several_chunks_keeps_the_mean(name, faults):
    swarm = Blocking(
        4, codecs.build(*CODECS[name]), seed=3, chunks=5, faults=faults, repeat_seconds=0.01
    )
    swarm.run()
    assert swarm.drift() < ROUNDING


def test_a_blocking_node_serves_no_request_while_it_trains():
    swarm = pair(mode="blocking")
    swarm.request(0, 1)
    swarm.poll(0)
    swarm.deliver()
    for _ in range(5):
        swarm.poll(1)
    assert not swarm.network.in_flight
    assert len(swarm.nodes[1].replica.terms(0)) == 1
    assert swarm.nodes[1].gate.state is State.TRAINING


@pytest.mark.parametrize("chunks", [1, 4])
def test_a_node_stays_at_its_boundary_until_it_has_served_waiting_requests(chunks):
    """If it left before, it would train on without its half of the average."""
    swarm = Swarm(3, codecs.build("float32"), "blocking", chunks=chunks)
    swarm.nodes[2].finish(0)
    swarm.poll(2)
    # Rank 1 requests from rank 2; meanwhile rank 0 requests from rank 1, and waits.
    for rank, partner in ((1, 2), (0, 1)):
        swarm.request(rank, partner)
        swarm.poll(rank)
    served, over = [], []
    for _ in range(1000):
        served.append(swarm.nodes[1].counters.exchanges_served)
        over.append(swarm.nodes[1].view.may_go_on)
        if swarm.network.in_flight:
            swarm.deliver()
        else:
            for rank in range(3):
                swarm.poll(rank)
    assert served[-1] == 1, "rank 1 must serve rank 0"
    assert over == [bool(count) for count in served]


def test_blocking_averages_once_a_boundary():
    """A fast partner's next request waits for the next boundary, even while the training thread of
    this node has not woken up. Else two nodes would not take turns as in Algorithm 1."""
    swarm = pair(mode="blocking")
    for rank in (0, 1):
        swarm.request(rank, 1 - rank)
        swarm.poll(rank)
    swarm.settle()
    # Rank 0 is fast: it leaves, trains and reaches its next boundary.
    assert swarm.nodes[0].view.may_go_on
    swarm.nodes[0].leave_boundary()
    swarm.train(0, 0.1)
    swarm.apply(0)
    ahead = swarm.models[0][0].copy()
    swarm.request(0, 1)
    swarm.poll(0)
    while swarm.network.in_flight:
        swarm.deliver()
    assert not swarm.nodes[0].view.may_go_on, "rank 1 has not taken its local step yet"
    # Only now the training thread of rank 1 wakes up.
    assert swarm.nodes[1].view.may_go_on
    swarm.nodes[1].leave_boundary()
    swarm.apply(1)
    swarm.train(1, 0.1)
    swarm.apply(1)
    behind = swarm.models[1][0].copy()
    swarm.request(1, 0)
    swarm.settle()
    for rank in (0, 1):
        swarm.nodes[rank].leave_boundary()
        swarm.apply(rank)
        np.testing.assert_allclose(swarm.models[rank][0], (ahead + behind) / 2, atol=1e-6)


def test_blocking_gives_up_a_partner_that_stops_answering(caplog):
    swarm = pair(mode="blocking", chunks=8, timeout_seconds=10)
    swarm.request(1, 0)
    swarm.poll(1)
    while swarm.network.in_flight:
        swarm.deliver()
    swarm.request(0, 1)
    swarm.poll(0)
    assert swarm.nodes[0].gate.state is State.PAIRED
    swarm.network.in_flight.clear()  # rank 1 is gone
    assert not swarm.nodes[0].view.may_go_on
    swarm.now += 11
    with caplog.at_level(logging.WARNING, "swarm_tf"):
        swarm.poll(0)
    assert "rank 1" in caplog.text
    swarm.poll(0)
    assert swarm.nodes[0].view.may_go_on
