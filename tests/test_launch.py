"""swarmrun: what it makes of its arguments, and the exit codes it hands on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_tf import UsageError, launch

SWARMRUN = str(Path(sys.executable).parent / "swarmrun")


def test_the_script_and_its_arguments_go_to_mpirun_untouched():
    command, _, _ = launch.plan(["-n", "3", __file__, "-n", "7", "--dry-run"])
    assert Path(command[0]).name in ("mpirun", "mpiexec")
    assert command[1:] == ["-n", "3", sys.executable, __file__, "-n", "7", "--dry-run"]


def test_more_ranks_than_cores_are_allowed():
    _, environment, _ = launch.plan(["-n", str(2 * os.cpu_count()), __file__])
    assert environment["PRTE_MCA_rmaps_default_mapping_policy"] == ":oversubscribe"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "-n"),
        (["-n"], "number of ranks"),
        (["-n", "0", "x.py"], "-n 0"),
        (["-n", "many", "x.py"], "-n many"),
        (["-n", "2"], "script"),
        (["-n", "2", "no_such.py"], "no_such.py"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, word):
    with pytest.raises(UsageError, match=word) as refusal:
        launch.plan(arguments)
    assert "\n" not in str(refusal.value)


def test_dry_run_prints_the_command_and_starts_nothing():
    done = subprocess.run(
        [SWARMRUN, "-n", "2", "--dry-run", __file__], capture_output=True, text=True, check=True
    )
    assert " -n 2 " in done.stdout
    assert done.stdout.endswith(f" {__file__}\n")


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_of_the_script_comes_through(tmp_path, code):
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.exit({code})")
    assert (
        subprocess.run([SWARMRUN, "-n", "2", str(script)], capture_output=True).returncode == code
    )
