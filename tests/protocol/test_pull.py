"""Mode pull: only the initiator changes."""

import numpy as np
import pytest

from swarm_tf import codec as codecs
from swarm_tf.codec import BLOCK
from tests.protocol.swarm import FAULTS, Swarm, pair


@pytest.mark.parametrize("codec", ["float32", "lattice"])
@pytest.mark.parametrize("chunks", [1, 4])
def test_pull_changes_only_the_initiator(codec, chunks):
    swarm = pair(codec, "pull", chunks=chunks)
    for _ in range(3):
        a, b = (np.concatenate(m) for m in swarm.models)
        swarm.request(0, 1)
        swarm.settle()
        for rank in (0, 1):
            swarm.apply(rank)
        np.testing.assert_array_equal(np.concatenate(swarm.models[1]), b)
        np.testing.assert_allclose(np.concatenate(swarm.models[0]), (a + b) / 2, atol=0.004)
        assert np.abs(np.concatenate(swarm.models[0]) - a).max() > 0.001
    # Replies carry the payload; a lattice begins with an exact exchange.
    bytes_a_weight = 4 + 4 + 4 if codec == "float32" else 4 + 1 + 1
    blocks = sum(codecs.blocks_of(length) for length in swarm.lengths)
    assert swarm.count("payload_bytes") == bytes_a_weight * blocks * BLOCK


def test_pull_with_faults_is_still_an_average():
    swarm = Swarm(4, codecs.build("lattice", 8), "pull", seed=6, faults=FAULTS)
    before = swarm.distance()
    swarm.run(300, noise=0)
    assert swarm.distance() < before / 1000


def test_two_pulls_that_cross_are_both_served():
    """Each pull changes its initiator only, so one cannot replace the other."""
    swarm = pair(mode="pull")
    before = swarm.models[1][0] - swarm.models[0][0]
    for rank in (0, 1):
        swarm.request(rank, 1 - rank)
        swarm.poll(rank)
    swarm.settle()
    for rank in (0, 1):
        swarm.apply(rank)
    assert swarm.count("exchanges") == 2
    # The first initiator moves to the middle; the second reads that model or the one before.
    after = swarm.models[1][0] - swarm.models[0][0]
    assert np.all(np.abs(after) <= np.abs(before) / 4 + 1e-6)
