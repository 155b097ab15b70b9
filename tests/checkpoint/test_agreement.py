"""Which checkpoints ranks go on from: all agree, whatever is lost, damaged or of other ranks."""

import ml_dtypes
import numpy as np
import pytest

from swarm_tf.checkpoint import agreement
from swarm_tf.checkpoint.mean import mean_of
from swarm_tf.checkpoint.store import Stage, Store
from swarm_tf.errors import UsageError
from swarm_tf.transport.local import LocalNetwork
from tests.transport.ranks import in_threads


def state(rank, step, *, synchronous=False):
    value = np.float32(100 * rank + step)
    return {"synchronous": synchronous, "step": step, "weights": np.full(5, value)}


def write(directory, stage, steps, **options):
    """Files of each rank at its steps."""
    for rank, those in enumerate(steps):
        for step in those:
            Store(directory, stage, rank, keep=9).write(step, state(rank, step, **options))


def find(directory, size):
    """What each of `size` ranks finds."""
    network = LocalNetwork(size)

    def one(rank):
        stage = agreement.newest_stage(directory, network[rank])
        return None if stage is None else agreement.find(directory, network[rank], stage)

    return in_threads(size, one)


def damage(directory, stage, rank, step):
    (path,) = Store(directory, stage, rank).path.glob(f"step-{step:09d}-*")
    path.write_bytes(path.read_bytes()[:-1])


def test_without_files_nobody_goes_on(tmp_path):
    assert find(tmp_path, 3) == [None] * 3
    assert find(tmp_path / "none", 2) == [None] * 2


def test_each_rank_takes_its_own_latest_file(tmp_path):
    write(tmp_path, Stage(1, 3), [[10, 20], [11], [12, 25, 30]])
    found = find(tmp_path, 3)
    assert [one.step for one in found] == [20, 11, 30]
    assert all(one.own for one in found)
    assert [one.state["weights"][0] for one in found] == [20, 111, 230]
    assert found[0].steps == {0: 20, 1: 11, 2: 30}
    assert not any(one.other_ranks for one in found)


def test_a_newer_stage_counts_even_if_the_older_one_has_more_steps(tmp_path):
    write(tmp_path, Stage(1, 4), [[100]] * 4)
    write(tmp_path, Stage(2, 2), [[7], [8]])
    assert [one.step for one in find(tmp_path, 2)] == [7, 8]


def test_synchronous_ranks_take_the_latest_step_that_all_have(tmp_path):
    stage = Stage(1, 3)
    write(tmp_path, stage, [[10, 20, 30], [10, 20], [10, 20, 30]], synchronous=True)
    assert [one.step for one in find(tmp_path, 3)] == [20] * 3
    damage(tmp_path, stage, 2, 20)
    assert [one.step for one in find(tmp_path, 3)] == [10] * 3


def test_a_rank_without_a_file_takes_the_mean_of_the_others(tmp_path, caplog):
    stage = Stage(1, 3)
    write(tmp_path, stage, [[10], [14], [30]])
    damage(tmp_path, stage, 2, 30)
    found = find(tmp_path, 3)
    assert [one.own for one in found] == [True, True, False]
    assert [one.step for one in found] == [10, 14, 12]
    np.testing.assert_array_equal(found[2].state["weights"], np.full(5, (10 + 114) / 2))
    assert "rank 2: no checkpoint that can be read" in caplog.text


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_another_number_of_ranks_takes_the_mean_of_all_and_counts_passes(tmp_path, size):
    write(tmp_path, Stage(1, 4), [[10], [20], [30], [40]])
    found = find(tmp_path, size)
    mean = np.mean([10, 120, 230, 340])
    for one in found:
        assert not one.own
        assert one.other_ranks
        assert one.step == round(25 * 4 / size)  # as many passes over the data
        assert one.steps == {0: 10, 1: 20, 2: 30, 3: 40}
        np.testing.assert_allclose(one.state["weights"], np.full(5, mean))


def test_files_that_cannot_be_read_at_all_are_not_forgotten(tmp_path):
    stage = Stage(1, 2)
    write(tmp_path, stage, [[10], [10]])
    for rank in range(2):
        damage(tmp_path, stage, rank, 10)
    with pytest.raises(UsageError, match="none that can be read; move it away"):
        find(tmp_path, 2)


def test_the_mean_of_states_is_numpys(tmp_path):
    """Ranks have two, none and one state; what not all states have is left out."""
    rng = np.random.default_rng(0)

    def one(number):
        return {
            "weights": [rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=2)],
            "half": rng.normal(size=6).astype(ml_dtypes.bfloat16),
            "count": np.array(number),
            "complex": np.array([1 + 1j * number]),
            "empty": np.zeros((0, 3), np.float32),
            "name": f"number {number}",
            "by_neighbor": {str(number): np.zeros(3), "9": np.full(3, number)},
            "uneven": np.zeros(number),
        }

    states = [one(number) for number in (1, 2, 6)]
    mine = [states[:2], [], states[2:]]
    network = LocalNetwork(3)
    means = in_threads(3, lambda rank: mean_of(mine[rank], network[rank]))
    for mean in means:
        for place in range(2):
            wanted = np.mean([s["weights"][place] for s in states], axis=0)
            np.testing.assert_allclose(mean["weights"][place], wanted, rtol=1e-6)
            assert mean["weights"][place].dtype == states[0]["weights"][place].dtype
        halves = [s["half"].astype(np.float32) for s in states]
        assert mean["half"].dtype == ml_dtypes.bfloat16
        np.testing.assert_allclose(mean["half"].astype(float), np.mean(halves, axis=0), rtol=1e-2)
        assert mean["count"] == 3
        np.testing.assert_allclose(mean["complex"], [1 + 3j])
        assert mean["empty"].shape == (0, 3)
        assert mean["name"] == "number 1"
        assert mean["by_neighbor"].keys() == {"9"}
        np.testing.assert_array_equal(mean["by_neighbor"]["9"], np.full(3, 3))
        assert "uneven" not in mean
        assert [array.tobytes() for array in mean["weights"]] == [
            array.tobytes() for array in means[0]["weights"]
        ]
