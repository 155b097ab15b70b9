"""A node whose model is not finite takes the model of a neighbour."""

import numpy as np
import pytest

from swarm_tf import codec as codecs
from swarm_tf.codec import BLOCK
from tests.protocol.swarm import Swarm, flat, pair


@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
@pytest.mark.parametrize("faults", [None, {"drop": 0.2, "duplicate": 0.2, "corrupt": 0.2}])
@pytest.mark.parametrize("codec", ["lattice", "float32"])
def test_a_node_that_is_not_finite_adopts_a_model(mode, faults, codec):
    swarm = Swarm(2, codecs.build(codec), mode, chunks=3, faults=faults)
    swarm.models[0][1][7] = np.nan
    swarm.apply(0)
    swarm.request(0, 1)
    swarm.nodes[1].finish(0)
    swarm.settle()
    assert not swarm.nodes[0].replica.finite
    swarm.nodes[0].leave_boundary()
    swarm.nodes[0].request(1, 1, adopt=True)
    swarm.settle()
    adopted = swarm.nodes[0].take_adopted()
    assert swarm.nodes[0].take_adopted() is None
    for chunk, model in enumerate(adopted):
        expected = sum(flat(t, BLOCK) for t in swarm.nodes[1].replica.terms(chunk))
        np.testing.assert_array_equal(model, expected)
    assert swarm.nodes[0].counters.adoptions == 1
    assert not any(n.counters.exchanges for n in swarm.nodes)


def test_no_node_adopts_a_model_that_is_not_finite():
    swarm = pair()
    for rank in range(2):
        swarm.models[rank][0][7] = np.inf
        swarm.apply(rank)
    swarm.nodes[0].request(1, 1, adopt=True)
    swarm.settle()
    assert swarm.nodes[0].take_adopted() is None
    (exchange,) = swarm.nodes[0].take_ended()
    assert exchange.failure == "the weights of rank 1 contain NaN or Inf"
