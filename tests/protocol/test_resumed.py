"""Nodes that go on from a checkpoint exchange as if they had never been interrupted."""

import numpy as np
import pytest

from swarm_tf import codec as codecs
from swarm_tf.checkpoint.store import Stage, Store
from tests.protocol.swarm import CODECS, Swarm

SCRIPT = [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)]


def trained(swarm, first, last):
    """Steps and exchanges number `first` to `last` of a script, one after the other."""
    for number in range(first, last):
        for rank in range(swarm.size):
            rng = np.random.default_rng([number, rank])
            for x in swarm.models[rank]:
                x += (0.01 * rng.normal(size=x.shape)).astype(np.float32)
            swarm.steps[rank] += 1
            swarm.apply(rank)
        initiator, partner = SCRIPT[number % len(SCRIPT)]
        swarm.request(initiator, partner)
        swarm.settle()
        for rank in range(swarm.size):
            swarm.apply(rank)


def make(codec):
    return Swarm(3, codecs.build(*CODECS[codec]), seed=4, chunks=2, faults={"in_order": True})


@pytest.mark.parametrize(
    "codec", ["lattice8", pytest.param("lattice4", marks=pytest.mark.slow), "float32"]
)
def test_resumed_nodes_exchange_the_same_bits(tmp_path, codec):
    """With a scripted schedule: seeds, step sizes and magnitudes are part of the state."""
    whole, resumed = make(codec), make(codec)
    trained(whole, 0, 15)
    for rank in range(3):
        state = {"node": whole.nodes[rank].state(), "model": whole.models[rank]}
        Store(tmp_path, Stage(1, 3), rank).write(15, state)
    trained(whole, 15, 30)
    for rank in range(3):
        saved = Store(tmp_path, Stage(1, 3), rank).read(15)
        resumed.nodes[rank].restore(saved["node"], own=True)
        resumed.models[rank] = [x.copy() for x in saved["model"]]
        resumed.apply(rank)
    trained(resumed, 15, 30)
    for one, other in zip(whole.models, resumed.models, strict=True):
        for x, y in zip(one, other, strict=True):
            assert x.tobytes() == y.tobytes()


def test_without_that_state_they_would_not(tmp_path):
    """Else the test above would prove nothing: fresh nodes begin with an exact exchange."""
    whole, fresh = make("lattice8"), make("lattice8")
    trained(whole, 0, 15)
    for rank in range(3):
        fresh.models[rank] = [x.copy() for x in whole.models[rank]]
        fresh.apply(rank)
    trained(whole, 15, 18)
    trained(fresh, 15, 18)
    assert any(
        x.tobytes() != y.tobytes()
        for one, other in zip(whole.models, fresh.models, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def test_the_mean_of_other_nodes_states_has_no_seeds_of_its_own():
    whole, other = make("lattice8"), make("lattice8")
    trained(whole, 0, 6)
    saved = whole.nodes[1].state()
    before = other.nodes[0].state()["initiator"]
    other.nodes[0].restore(saved, own=False)
    assert other.nodes[0].state()["initiator"] == before
    found = other.nodes[0].state()["channels"][0]["scales"]["mean"]
    np.testing.assert_array_equal(found, saved["channels"][0]["scales"]["mean"])
