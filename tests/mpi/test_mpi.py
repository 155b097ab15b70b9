"""Programs under a real MPI; each checks several things, since a rank takes seconds to start."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from swarm_tf import UsageError
from swarm_tf.history import check
from swarm_tf.launch import swarmrun

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]
SWARMRUN = Path(sys.executable).parent / "swarmrun"
HANG = 400.0  # seconds; ten times what a quiet machine needs


def _no_mpi() -> str:
    try:
        swarmrun.find_mpirun(swarmrun.mpi_library())
    except UsageError as error:
        return str(error)
    return ""


REASON = _no_mpi()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


def start(ranks, program, *arguments, hang=HANG):
    """(exit code, output, seconds) of a program on so many ranks, all killed after `hang`."""
    environment = dict(
        os.environ,
        PYTHONPATH=str(ROOT),
        KERAS_BACKEND="tensorflow",
        TF_CPP_MIN_LOG_LEVEL="3",
        TF_NUM_INTRAOP_THREADS="1",
        TF_NUM_INTEROP_THREADS="1",
        OMP_NUM_THREADS="1",
        PYTHONUNBUFFERED="1",
    )
    command = [str(SWARMRUN), "-n", str(ranks), str(PROGRAMS / program), *map(str, arguments)]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=hang)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        for pid in processes(program):
            os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=30)
        pytest.fail(f"{program} on {ranks} ranks hangs after {hang:g} s:\n{_without_noise(output)}")
    return process.returncode, _without_noise(output), time.monotonic() - began


def _without_noise(output):
    noise = ("oneDNN", "absl::InitializeLog", "triggered tf.function retracing", "UserWarning")
    return "\n".join(line for line in output.splitlines() if not any(n in line for n in noise))


def processes(program):
    """Ids of processes that run the program."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(PROGRAMS / program).encode() in words:
            found.append(int(entry.parent.name))
    return found


def passes(ranks, program, *arguments):
    code, output, _ = start(ranks, program, *arguments)
    assert code == 0, f"exit code {code}:\n{output}"
    for rank in range(ranks):
        assert f"rank {rank} passed" in output, output
    return output


def ends_together(ranks, program, *arguments):
    """Output of a job of which a rank fails; it must end within seconds and leave nothing."""
    code, output, _ = start(ranks, program, *arguments)
    ended = time.time()
    assert code != 0, output
    failed = re.search(r"failing at ([0-9.]+)", output)
    assert failed, output
    assert ended - float(failed[1]) < 10, output
    deadline = time.monotonic() + 5
    while processes(program) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(program) == []
    assert "never" not in output, output
    return output


@pytest.mark.matrix
def test_collectives_messages_and_the_local_transport():
    passes(4, "transport.py")


def test_keras_fit_and_trainer():
    passes(3, "fit.py")


def test_two_ranks_fit_like_the_reference():
    passes(2, "reference.py")


def test_baselines_follow_their_update_rules():
    passes(4, "baselines.py")


@pytest.mark.skipif(
    not SWARMRUN.with_name("horovodrun").exists(),
    reason="no Horovod in this environment: make horovod builds it",
)
def test_both_backends_of_allreduce_agree():
    passes(4, "horovod_agrees.py")


def test_an_evaluation_delays_nobody(tmp_path):
    passes(2, "evaluate.py", tmp_path)


def test_a_rank_whose_weights_are_not_finite_is_healed_or_left_out():
    passes(3, "ill.py")


def test_keras_callbacks_on_several_ranks():
    passes(2, "callbacks.py")


def test_a_signal_ends_all_ranks_whatever_they_do():
    passes(2, "signals_in_fit.py")


def test_the_exchanges_of_a_real_run_are_proven(tmp_path):
    passes(3, "recorded.py", tmp_path)
    for mode in ("nonblocking", "blocking", "pull"):
        figures, violations = check.check(check.read(tmp_path / mode))
        assert violations == []
        assert figures["exchanges"] > 10


@pytest.mark.matrix
def test_processes_that_a_rank_starts_are_plain_ones():
    passes(2, "children.py")


@pytest.mark.matrix
def test_a_refusal_reaches_every_rank():
    passes(3, "refused.py")


@pytest.mark.matrix
def test_a_rank_that_does_not_start_is_not_waited_for_ever():
    output = ends_together(2, "never_starts.py")
    assert re.search("rank 0 on .* waited 3 s for MPI to connect all 2 ranks", output), output


def test_gather_names_the_rank_that_is_late():
    output = ends_together(3, "late.py")
    assert re.search(r"TimeoutError: the test: rank 0 waited 2 s for ranks \[1\]", output), output


@pytest.mark.parametrize("algorithm", ["allreduce", "local_sgd"])
def test_ranks_with_uneven_numbers_of_batches_are_told(algorithm):
    output = ends_together(3, "uneven.py", algorithm)
    # Whether they meet in an averaging, or where they ask each other once a second for signals.
    late, uneven = r"rank [12] waited 3 s for ranks \[[01, ]+\]", "must be the same on all ranks"
    elsewhere = r"rank \d is at 'the end of training', but rank 0 at|but rank 0 at 'the end of"
    assert re.search(f"{late}|{uneven}|{elsewhere}", output), output


@pytest.mark.parametrize("where", ["data", pytest.param("exit", marks=pytest.mark.matrix)])
def test_a_rank_that_fails_ends_the_job(where):
    output = ends_together(2, "fails.py", where)
    if where == "exit":
        assert "rank 1 ended during training" in output
    else:
        assert "rank 1 on " in output
        assert "Traceback (most recent call last)" in output
        assert "the reason of rank 1" in output
        assert "fails.py" in output, "the traceback shows the user's line"


@pytest.mark.parametrize("where", ["before", "first", "swarm", "local_sgd", "elsewhere"])
def test_a_rank_whose_program_ends_is_not_waited_for(where):
    output = ends_together(2, "leaves.py", where)
    told = {
        "before": "the start of training: rank 1 has left",
        "first": "the start of training: rank 0 has left",
        "swarm": "rank 0 left in the middle of training",
        "local_sgd": r"whose programs have ended|rank 1 has left",
        "elsewhere": r"rank 1 is at 'something else', but rank 0 at 'the start of training'",
    }
    assert re.search(told[where], output), output


def test_trainings_that_failed_and_were_handled_end_nothing():
    passes(2, "leaves.py", "handled")


def test_one_rank_alone_trains_plainly(caplog):
    import keras

    import swarm_tf

    x, y = np.ones([32, 3], np.float32), np.ones([32, 1], np.float32)
    weights = []
    for callbacks in ([], [swarm_tf.SwarmCallback(local_steps=2)]):
        keras.utils.set_random_seed(5)
        model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        with caplog.at_level("WARNING", "swarm_tf"):
            model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert caplog.text.count("training alone") == 1
    assert (swarm_tf.rank(), swarm_tf.size()) == (0, 1)
