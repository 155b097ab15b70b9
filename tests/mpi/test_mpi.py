"""Programs under a real MPI. Programs that pass share one start for each number of ranks."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests import together

PROGRAMS = Path(__file__).parent / "programs"
HANG = 400.0  # seconds; ten times what a quiet machine needs
AT_ONCE = 45.0  # seconds; less than any timeout that would end the job without the error

pytestmark = together.needs_mpi

RANKS = {
    "transport": 4,  # collectives, messages, and the same bits as over threads
    "refused": 4,  # a refusal reaches every rank
    "baselines": 4,  # each follows its update rule
    "horovod_agrees": 4,  # both backends of all-reduce give the same weights
    "fit": 3,  # Keras' fit and the Trainer
    "not_finite": 3,  # a rank whose weights are not finite recovers, or is left out
    "recorded": 3,  # the record of a real run has no violations
    "reference": 2,  # two ranks fit like the reference
    "callbacks": 2,  # Keras' callbacks on several ranks
    "signals_in_fit": 2,  # a signal ends all ranks, at any moment
    "leaves": 2,  # a failed training that was handled ends no program
    "resume": 2,  # a training goes on from its checkpoint as if it had never been interrupted
    "evaluate": 2,  # an evaluation delays no other rank
    "children": 2,  # processes that a rank starts are not part of the job
}
MARKS = {name: [pytest.mark.matrix] for name in ("transport", "refused", "children")}
HAVE_SLOW = [
    "transport",
    "baselines",
    "fit",
    "not_finite",
    "callbacks",
    "signals_in_fit",
    "children",
]
for name in HAVE_SLOW:
    RANKS[f"{name}-slow"] = RANKS[name]
    MARKS[f"{name}-slow"] = [*MARKS.get(name, []), pytest.mark.slow]
MARKS["horovod_agrees"] = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not together.SWARMRUN.with_name("horovodrun").exists(),
        reason="no Horovod in this environment: make horovod builds it",
    ),
]


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """{name: (failure, seconds)} of all selected programs."""
    names = together.selected_names(request, test_a_program_passes)
    program, found = [str(PROGRAMS / "checks.py")], {}
    for ranks in sorted({RANKS[name] for name in names}):
        same = [name for name in names if RANKS[name] == ranks]
        found |= together.run(ranks, program, same, tmp_path_factory.mktemp("mpi"))
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, []), id=name) for name in RANKS]
)
def test_a_program_passes(name, results):
    failure, _ = results[name]
    assert not failure, failure


def start(ranks, program, *arguments, hang=HANG):
    """(exit code, output) of a program on so many ranks, all killed after `hang`."""
    command = [together.SWARMRUN, "-n", ranks, PROGRAMS / program, *arguments]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=together.environment(),
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
    return process.returncode, _without_noise(output)


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


def output_of_failing_job(ranks, program, *arguments):
    """The output of a job in which a rank fails; the job must end at once and leave no process."""
    code, output = start(ranks, program, *arguments)
    ended = time.time()
    assert code != 0, output
    failed = re.search(r"failing at ([0-9.]+)", output)
    assert failed, output
    assert ended - float(failed[1]) < AT_ONCE, output
    deadline = time.monotonic() + AT_ONCE
    while processes(program) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(program) == []
    assert "never" not in output, output
    return output


@pytest.mark.matrix
def test_a_rank_that_does_not_start_ends_the_job():
    output = output_of_failing_job(2, "never_starts.py")
    assert re.search("rank 0 on .* waited 3 s for MPI to connect all 2 ranks", output), output


def test_gather_names_the_rank_that_is_late():
    output = output_of_failing_job(3, "late.py")
    assert re.search(r"TimeoutError: the test: rank 0 waited 2 s for ranks \[1\]", output), output


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["allreduce", "local_sgd"])
def test_uneven_numbers_of_batches_end_the_job_with_a_reason(algorithm):
    output = output_of_failing_job(3, "uneven.py", algorithm)
    # Ranks may wait in an averaging, or in the check for signals once a second.
    late, uneven = r"rank [12] waited 3 s for ranks \[[01, ]+\]", "must be the same on all ranks"
    elsewhere = r"rank \d is at 'the end of training', but rank 0 at|but rank 0 at 'the end of"
    assert re.search(f"{late}|{uneven}|{elsewhere}", output), output


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("data", marks=pytest.mark.slow),
        pytest.param("exit", marks=pytest.mark.matrix),
    ],
)
def test_a_rank_that_fails_ends_the_job(where):
    output = output_of_failing_job(2, "fails.py", where)
    if where == "exit":
        assert "rank 1 ended during training" in output
    else:
        assert "rank 1 on " in output
        assert "Traceback (most recent call last)" in output
        assert "the reason of rank 1" in output
        assert "fails.py" in output, "the traceback shows the user's line"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["swarm", "local_sgd", "before", "first", "elsewhere"])
def test_a_rank_whose_program_ends_is_not_waited_for(where):
    output = output_of_failing_job(2, "leaves.py", where)
    expected = {
        "before": "the start of training: rank 1 has left",
        "first": "the start of training: rank 0 has left",
        "swarm": "rank 0 left in the middle of training",
        "local_sgd": r"whose programs have ended|rank 1 has left",
        "elsewhere": r"rank 1 is at 'something else', but rank 0 at 'the start of training'",
    }
    assert re.search(expected[where], output), output


def test_one_rank_alone_trains_as_without_the_callback(caplog):
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
