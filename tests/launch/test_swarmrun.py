"""swarmrun: the command that it builds from its arguments, and its exit code."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_tf import UsageError
from swarm_tf.cluster import environment
from swarm_tf.launch import swarmrun

SWARMRUN = str(Path(sys.executable).parent / "swarmrun")


def test_the_script_and_its_arguments_are_passed_to_mpirun_unchanged():
    command = swarmrun.plan(["-n", "3", __file__, "-n", "7", "--dry-run"]).command
    assert Path(command[0]).name in ("mpirun", "mpiexec")
    assert command[1:] == ["-n", "3", sys.executable, __file__, "-n", "7", "--dry-run"]


def test_more_ranks_than_cores_are_allowed():
    variables = swarmrun.plan(["-n", str(2 * os.cpu_count()), __file__]).variables
    assert variables["PRTE_MCA_rmaps_default_mapping_policy"] == "slot:oversubscribe"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "-n RANKS is missing;"),
        ([__file__, "-n", "2"], f"-n RANKS is missing before {__file__}"),
        (["--dry-run", __file__], "-n RANKS is missing before"),
        (["-n"], "number of ranks"),
        (["--np", "0", "x.py"], "--np 0 must"),
        (["-n=", "x.py"], "-n  must be a number of ranks"),
        (["-n", "²", "x.py"], "-n ² must"),
        (["-n", "x.py"], "-n x.py must be a number of ranks"),
        (["-n2", __file__], "-n2 is no flag of swarmrun; did you mean -n 2"),
        (["-np2", __file__], "did you mean -n 2"),
        (["--ranks", "2", __file__], "--ranks is no flag of swarmrun; a flag of the script"),
        (["-n", "2", "--bind-to", "none", __file__], "--bind-to is no flag of swarmrun"),
        (["-n", "2", "--dryrun", __file__], "did you mean --dry-run"),
        (["-n", "2", "--config=c.py", __file__], "comes after the script"),
        (["-n", "2", "python", __file__], f"leave it out and write {__file__}"),
        (["-n", "2", sys.executable, __file__], f"leave it out and write {__file__}"),
        (["-n", "2", __file__.replace("swarmrun.py", "swarmrum.py")], f"did you mean {__file__}"),
        (["-n", "0", "x.py"], "-n 0"),
        (["-n", "many", "x.py"], "-n many"),
        (["-n", "2"], "script"),
        (["-n", "2", "no_such.py"], "no_such.py"),
        (["-n", "2", "-m"], "module"),
        (["-n", "2", "--hosts"], "--hosts"),
        (["-n", "2", "--restarts", "some", __file__], "--restarts some must be a whole number"),
        (["-n", "2", "--restart=3", __file__], "did you mean --restarts"),
        (["-n", "2", "--hosts", "a:b", "x.py"], "--hosts a:b"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, word):
    with pytest.raises(UsageError) as refusal:
        swarmrun.plan(arguments)
    assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "flags",
    [["-n", "2"], ["-np", "2"], ["--n", "2"], ["--np", "2"], ["-n=2"], ["--np=2"], ["-c", "2"]],
)
@pytest.mark.parametrize(
    "hosts", [["-H", "a,b"], ["--host", "a,b"], ["-hosts", "a,b"], ["--hosts=a,b"]]
)
def test_the_flags_of_every_mpirun_are_accepted(flags, hosts):
    expected = swarmrun.plan(["-n", "2", "--hosts", "a,b", __file__]).command
    assert swarmrun.plan([*flags, *hosts, __file__]).command == expected
    assert swarmrun.plan([*hosts, *flags, __file__]).command == expected


def test_dry_run_prints_the_command_and_starts_nothing():
    done = subprocess.run(
        [SWARMRUN, "-n", "2", "--dry-run", __file__], capture_output=True, text=True, check=True
    )
    assert " -n 2 " in done.stdout
    assert done.stdout.endswith(f" {__file__}\n")


def test_hosts_are_passed_to_mpirun_with_the_variables_their_ranks_need(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    command = swarmrun.plan(["-n", "3", "--hosts", "a:2,b", __file__]).command
    hosts = command.index("--host" if "--host" in command else "-hosts")
    assert command[hosts + 1] == "a:2,b"
    assert command[-2:] == [sys.executable, __file__]
    if "--host" in command:  # MPICH forwards all variables
        forwarded = [name for x, name in itertools.pairwise(command) if x == "-x"]
        assert {"PATH", "KERAS_BACKEND"} <= set(forwarded)
        assert "HOME" not in forwarded


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("Open MPI v5.0.11, package: Open MPI x, ident: 5.0.11\0", "Open MPI v5.0.11"),
        ("MPICH Version:      5.0.2\nMPICH Release date: Fri", "MPICH Version 5.0.2"),
        (
            "Intel(R) MPI Library 2021.9 for Linux* OS\n",
            "Intel(R) MPI Library 2021.9 for Linux* OS",
        ),
    ],
)
def test_an_mpi_has_a_short_name(library, name):
    assert environment.mpi_name(library) == name


@pytest.mark.parametrize(
    ("variables", "library", "built_for", "can"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI v5.0.11", "", True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "MPICH Version 5.0.2", "", False),
        ({"SLURM_MPI_TYPE": "pmix_v4"}, "Open MPI v4.1.4", "", True),
        ({"SLURM_MPI_TYPE": "pmi2"}, "Open MPI v4.1.4", "ext3x", False),
        ({"SLURM_MPI_TYPE": "pmi2"}, "Open MPI v4.1.4", "s2", True),
        ({"SLURM_MPI_TYPE": "none"}, "Open MPI v4.1.4", "s2", False),
        ({"SLURM_MPI_TYPE": "none"}, "Open MPI v5.0.11", "", True),  # refused later, once MPI runs
        ({"SLURM_MPI_TYPE": "pmi2"}, "MPICH Version 5.0.2", "", True),
    ],
)
def test_which_mpi_a_launcher_can_start(monkeypatch, tmp_path, variables, library, built_for, can):
    if "SLURM_MPI_TYPE" in variables:
        variables = variables | {"SLURM_STEP_NUM_TASKS": "2"}
    ompi_info = tmp_path / "ompi_info"
    ompi_info.write_text(f"#!/bin/sh\necho mca:pmix:{built_for}:version:x\n")
    ompi_info.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.can_start(library) is can


@pytest.mark.parametrize("code", [0, 3])
def test_swarmrun_returns_the_exit_code_of_the_script(tmp_path, code):
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.exit({code})")
    assert (
        subprocess.run([SWARMRUN, "-n", "2", str(script)], capture_output=True).returncode == code
    )


# --- restarts -------------------------------------------------------------------------------------

FAILING = """
import os, pathlib, sys, time
from swarm_tf.cluster import environment
starts, progress, code = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
count = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (count + 1))
assert environment.is_restart() == (count > 0)
if count < progress:
    environment.note_progress()
sys.exit(code if count < 4 else 0)
"""


@pytest.mark.parametrize(
    ("restarts", "progress", "code", "expected", "starts"),
    [
        (9, 9, 3, 0, 5),  # four failures, each after some progress, and a success
        (2, 9, 3, 3, 3),  # no more restarts
        (9, 0, 3, 3, 2),  # two starts without progress
        (9, 2, 3, 3, 4),  # the first two made progress, the next two did not
        (9, 9, 2, 2, 1),  # a refusal would only be repeated
    ],
)
def test_a_failed_job_is_started_again_as_long_as_it_makes_progress(
    tmp_path, monkeypatch, capfd, restarts, progress, code, expected, starts
):
    monkeypatch.setattr(swarmrun, "_SHORTEST_PAUSE", 0.1)
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    counted = tmp_path / "starts"
    command = [sys.executable, str(script), str(counted), str(progress), str(code)]
    job = swarmrun.Job(command, dict(os.environ), dry_run=False, restarts=restarts)
    assert swarmrun.run_again(job) == expected
    assert len(counted.read_text()) == starts
    said = capfd.readouterr().err
    assert said.count("; restart ") == starts - 1
    assert ("giving up" in said) == (starts in (2, 4))


def test_a_signal_to_swarmrun_ends_the_restarts(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text("import sys; print('started', flush=True); sys.exit(3)")
    process = subprocess.Popen(
        [SWARMRUN, "-n", "1", "--restarts=9", str(script)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    line = next(line for line in process.stderr if line.startswith("swarmrun:"))
    assert line == "swarmrun: exit code 3; restart 1 of 9 in 5 s\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
