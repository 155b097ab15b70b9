"""A run goes on with one rank more, one rank fewer, from one rank and to one."""

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from swarm_tf.checkpoint.store import Store, ranks, stages
from tests import together

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "stage_of_a_run.py"
RATE, EPOCHS = 0.05, 6
# The numbers of ranks, and after how many steps rank 0 gets a signal; the last run ends by itself.
# Ranks agree on a stop once a second, so it comes up to 20 steps later.
STAGES = [(1, 12), (3, 6), (2, 8), (3, 5), (1, None)]


def run_stage(tmp_path, number, size, stop, algorithm):
    """Train, and return the notes of each rank."""
    notes = tmp_path / f"{number}-{{rank}}.npz"
    command = [sys.executable] if size == 1 else [str(together.SWARMRUN), "-n", str(size)]
    command += [str(PROGRAM), str(notes), str(stop or 0), f"--workdir={tmp_path / 'run'}"]
    command += ["--config=configs/digits_resnet.py", f"--config.algorithm={algorithm}"]
    command += [f"--config.train.epochs={EPOCHS}", f"--config.optimizer.learning_rate={RATE}"]
    command += ["--config.optimizer.warmup_epochs=0", "--config.train.log_every=1"]
    command += ["--config.train.step_seconds=0.05"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=together.environment()
    )
    assert done.returncode == (0 if stop is None else 143), done.stderr
    paths = [str(notes).format(rank=rank) for rank in range(size)]
    return [dict(np.load(path)) for path in paths]


def last_checkpoints(directory):
    """The newest state that each rank has saved."""
    stage = stages(directory)[-1]
    stores = [Store(directory, stage, rank) for rank in ranks(directory, stage)]
    return [store.read(store.steps()[0]) for store in stores]


@pytest.mark.slow
@together.needs_mpi
@pytest.mark.parametrize("algorithm", ["local_sgd", "swarm"])
def test_a_run_goes_on_with_other_numbers_of_ranks(tmp_path, algorithm):
    used, passes, saved = Counter(), 0.0, None
    taken_before = 0
    for number, (size, steps) in enumerate(STAGES):
        first = None if steps is None else round(taken_before / size) + steps
        notes = run_stage(tmp_path, number, size, first, algorithm)
        one_step = 1 / notes[0]["steps_per_pass"]
        if saved is not None:
            # Every rank begins with the mean of all that was saved: weights, momentum, statistics.
            arrays = zip(*(one["model"]["variables"] for one in saved), strict=True)
            for place, each in enumerate(arrays):
                begins = [rank[f"variable-{place}"] for rank in notes]
                assert all((one == begins[0]).all() for one in begins)
                if np.issubdtype(begins[0].dtype, np.floating) and begins[0].ndim:
                    mean = np.mean(np.stack(each), axis=0, dtype=np.float64)
                    np.testing.assert_allclose(begins[0], mean, rtol=1e-5, atol=1e-7)
            assert len({str(rank["digest"]) for rank in notes}) == 1
            # The schedule goes on at the same pass.
            rates = {float(rank["learning_rate"]) for rank in notes}
            begun = [int(rank["iterations"]) * one_step for rank in notes]
            assert np.allclose(begun, passes, atol=one_step)
            cosine = [RATE / 2 * (1 + math.cos(math.pi * min(1, at / EPOCHS))) for at in begun]
            assert len(rates) == 1
            assert np.allclose(list(rates), cosine, rtol=1e-3, atol=RATE * one_step)
        for rank in notes:
            used.update(rank["trained_on"].tolist())
        taken = [int(rank["first_step"] + rank["taken"]) for rank in notes]
        taken_before = sum(taken)
        passes = float(np.mean(taken)) * one_step
        saved = last_checkpoints(tmp_path / "run" / "checkpoints")
        assert len(saved) == size
    # All ranks together have used each example once a pass, to the last one.
    assert len(used) == int(notes[0]["examples"])
    assert max(used.values()) - min(used.values()) <= 1
    assert sum(used.values()) == pytest.approx(EPOCHS * len(used), rel=0.1)
