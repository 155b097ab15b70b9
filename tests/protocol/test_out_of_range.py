"""A node whose model is out of range of the others: it stood still, or they did."""

import numpy as np
import pytest

from swarm_tf import codec as codecs
from swarm_tf.codec import BLOCK
from tests.protocol.swarm import FAULTS, ROUNDING, Swarm, run_exchange


@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("chunks", [1, 5])
def test_a_model_out_of_range_is_averaged_by_an_exact_retry(mode, bits, chunks):
    swarm = Swarm(2, codecs.build("lattice", bits), mode, chunks=chunks)
    for _ in range(3):
        for rank in (0, 1):
            swarm.train(rank, 1e-3)
        usual = run_exchange(swarm, 0, 1)
    swarm.train(1, 1.0)
    swarm.apply(1)
    a, b = (np.concatenate(m) for m in swarm.models)
    retried = run_exchange(swarm, 0, 1)
    for model, kept in zip(swarm.models, (None, b if mode == "pull" else None), strict=True):
        expected = (a + b) / 2 if kept is None else kept
        np.testing.assert_allclose(np.concatenate(model), expected, atol=1e-6)
    assert not retried.failure
    assert retried.blocks == usual.blocks
    assert retried.blocks_skipped == 0
    # Both attempts were sent.
    assert retried.payload_bytes == usual.payload_bytes * (1 + 32 // bits)
    if mode != "pull":
        assert swarm.count("exchanges_served") == swarm.count("exchanges") == 4
        assert swarm.drift() < ROUNDING


@pytest.mark.parametrize(
    ("bits", "distance", "most"),
    [
        (4, 0.1, 3),
        pytest.param(4, 1.0, 15, marks=pytest.mark.slow),
        pytest.param(8, 1.0, 5, marks=pytest.mark.slow),
    ],
)
def test_a_node_that_stood_still_disturbs_the_others_only_briefly(bits, distance, most):
    """If scales took its distance as usual, the others would be 4.5, 58, 8.5 times as far apart."""
    factors = []
    for seed in range(5):
        swarm = Swarm(4, codecs.build("lattice", bits), seed=seed)
        swarm.run(200, noise=0.003)
        usual = []
        for _ in range(6):
            swarm.run(swarm.count("exchanges") + 5, noise=0.003)
            usual.append(swarm.distance())
        moved = distance * swarm.rng.normal(size=swarm.lengths[0])
        for rank in (1, 2, 3):
            swarm.models[rank][0] += moved.astype(np.float32)
            swarm.apply(rank)
        swarm.expected = swarm.total()
        swarm.run(
            swarm.count("exchanges") + 20, noise=0.003
        )  # ten of each rank, initiated or served
        factors.append(swarm.distance() / np.mean(usual))
        assert swarm.drift() < 3 * ROUNDING
    assert np.median(factors) < most


@pytest.mark.parametrize("chunks", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_mean_stays_when_models_jump_on_a_faulty_network(chunks):
    swarm = Swarm(3, codecs.build("lattice", 4), seed=11, chunks=chunks, faults=FAULTS)
    swarm.run(20, noise=0.003)
    repeated = 0
    for jump in range(12):
        before = swarm.count("payload_bytes"), swarm.count("exchanges")
        swarm.train(jump % 3, 1.0)
        swarm.run(swarm.count("exchanges") + 6, noise=0.003)
        assert swarm.drift() < 3 * ROUNDING  # corrections as large as the weights
        sent = swarm.count("payload_bytes") - before[0]
        usual = sum(codecs.blocks_of(n) for n in swarm.lengths) * BLOCK // 2
        repeated += sent > 2 * usual * (swarm.count("exchanges") - before[1])
    assert repeated > 3  # later the ranges are long enough
    swarm.run(swarm.count("exchanges") + 40, noise=0.003)
    assert swarm.distance() < 0.1
