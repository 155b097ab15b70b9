"""What the doctor reports; tests/launch/test_launchers.py runs it on real ranks."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from swarm_tf.launch import doctor

SWARM_TF = str(Path(sys.executable).parent / "swarm-tf")
HERE = doctor.Rank("a", 8, 2, 2, False, {"Keras": "3.1", "MPI": "x"})


def test_equal_ranks_have_no_differences():
    ranks = [HERE, replace(HERE, host="b")]
    assert list(doctor.differences(ranks)) == []
    assert list(doctor.hosts_short_of_gpus(ranks)) == []


def test_versions_that_differ_are_named_with_rank_and_host():
    other = replace(HERE, host="b", versions={"Keras": "3.2", "Slurm": "22"})
    assert list(doctor.differences([HERE, HERE, other])) == [
        "Keras is 3.1 on rank 0 and 3.2 on rank 2 (b)",
        "MPI is x on rank 0 and not there on rank 2 (b)",
    ]


def test_a_host_with_more_ranks_than_gpus_is_named_once():
    crowded = replace(HERE, host="b", local_ranks=4)
    assert list(doctor.hosts_short_of_gpus([HERE, crowded, crowded])) == [
        "4 ranks share 2 GPUs on b; start fewer"
    ]
    assert list(doctor.hosts_short_of_gpus([replace(crowded, own_gpus=True)])) == []


def run(*words):
    return subprocess.run([SWARM_TF, *words], capture_output=True, text=True, timeout=300)


def test_on_one_rank_the_doctor_reports_the_environment():
    done = run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("1 rank, started by no launcher\n")
    assert "MPI_THREAD_MULTIPLE" in done.stdout
    assert done.stdout.endswith("\nOK\n")


def test_a_problem_is_printed_with_what_to_change(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    done = run("doctor")
    assert done.returncode == 1
    # Without JAX, Keras cannot even be loaded on NumPy.
    what = r"To change: Keras (runs on numpy|cannot be loaded \(.+\)); set KERAS_BACKEND=tensorflow"
    assert re.search(what, done.stdout), done.stdout
    assert not done.stdout.endswith("OK\n")


def test_another_subcommand_is_refused():
    done = run("cure")
    assert (done.returncode, done.stderr) == (2, "usage: swarm-tf doctor|consensus\n")
