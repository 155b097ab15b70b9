"""Means and sendrecv between ranks as threads."""

import threading

import numpy as np
import pytest

from swarm_tf.transport import collectives
from swarm_tf.transport.local import LocalNetwork
from tests.transport.ranks import in_threads


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 4, 1001])
def test_the_mean_is_right_and_has_the_same_bits_on_all_ranks(size, length):
    network = LocalNetwork(size)
    rows = np.random.default_rng(0).normal(size=[size, length]).astype(np.float32)

    def action(rank):
        array = rows[rank].copy()
        collectives.run([collectives.mean(network[rank], array, 3, 10)])
        return array

    means = in_threads(size, action)
    np.testing.assert_allclose(means[0], rows.mean(axis=0), atol=1e-6)
    assert len({mean.tobytes() for mean in means}) == 1


def test_a_mean_sends_the_fewest_possible_bytes():
    """Each rank sends 2 (N - 1) / N times the array."""
    network = LocalNetwork(4)
    in_threads(4, lambda rank: collectives.average(network[rank], [np.zeros(1000, np.float32)], 10))
    assert [network[rank].bytes_sent for rank in range(4)] == [2 * 3 * 1000] * 4


def test_sendrecv_takes_any_pattern():
    """Rank 0 sends to all, all send to rank 0, rank 1 also sends to rank 2."""
    network = LocalNetwork(3)
    out = {0: [1, 2], 1: [0, 2], 2: [0]}

    def action(rank):
        into = {r: np.zeros(2, np.float32) for r in out if rank in out[r]}
        own = np.full(2, rank, np.float32)
        collectives.run(
            [collectives.sendrecv(network[rank], dict.fromkeys(out[rank], own), into, 0, 10)]
        )
        return {r: array.tolist() for r, array in into.items()}

    assert in_threads(3, action) == [
        {1: [1, 1], 2: [2, 2]},
        {0: [0, 0]},
        {0: [0, 0], 1: [1, 1]},
    ]


def test_background_collectives_may_start_in_any_order():
    network = LocalNetwork(3)
    turns = [(0, 1, 2), (2, 1, 0), (1, 2, 0)]

    def action(rank):
        background = collectives.Background(rank)
        background.start()
        arrays = [np.full(10, 10 * tag + rank, np.float32) for tag in range(3)]
        handles = [
            background.submit(collectives.mean(network[rank], arrays[tag], tag, 10))
            for tag in turns[rank]
        ]
        for handle in handles:
            handle.wait()
        background.stop()
        return [float(array[3]) for array in arrays]

    assert in_threads(3, action) == [[1, 11, 21]] * 3


def test_a_missing_rank_is_named():
    network = LocalNetwork(3)
    with pytest.raises(TimeoutError, match=r"^rank 1 waited 0.1 s for ranks \[0\]$"):
        collectives.average(network[1], [np.zeros(5, np.float32)], 0.1)


def test_wait_raises_the_failure_of_a_background_collective():
    network = LocalNetwork(2)
    background = collectives.Background(0)
    background.start()
    lost = background.submit(collectives.mean(network[0], np.zeros(5, np.float32), 0, 0.05))
    with pytest.raises(TimeoutError, match=r"rank 0 waited 0.05 s for ranks \[1\]"):
        lost.wait()
    background.stop()
    assert not background.is_alive()
    with pytest.raises(RuntimeError, match="stopped"):
        background.submit(collectives.mean(network[0], np.zeros(5, np.float32), 0, 1))


def test_stop_lets_background_collectives_finish():
    network = LocalNetwork(2)
    background = collectives.Background(0)
    background.start()
    array = np.zeros(4, np.float32)
    background.submit(collectives.mean(network[0], array, 0, 10))
    other = np.full(4, 2, np.float32)
    late = threading.Timer(0.1, collectives.average, (network[1], [other], 10))
    late.start()
    background.stop()
    assert array.tolist() == [1] * 4
    late.join()
