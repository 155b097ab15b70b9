"""What a launcher tells its ranks in environment variables, readable before MPI is started."""

from __future__ import annotations

import contextlib
import os
import re

from swarm_tf.cluster import subprocesses

OPEN_MPI = "Open MPI's mpirun"
"""What `launcher` calls it."""

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "HOROVOD_SIZE")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "HOROVOD_RANK")
_LOCAL_RANKS = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "SLURM_LOCALID",
    "HOROVOD_LOCAL_RANK",
)
_LOCAL_SIZES = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "SLURM_STEP_TASKS_PER_NODE",
    "HOROVOD_LOCAL_SIZE",
)


_JOINED = "SWARM_TF_JOINED"
"""A variable that a rank sets when it has joined the others. Processes that it starts inherit the
launcher's variables, but are no ranks: this one shows it. It holds process, rank, size and job."""

_JOBS = ("PMIX_NAMESPACE", "PMI_JOBID", "SLURM_STEP_ID", "HYDI_CONTROL_FD", "PMI_FD")


def size() -> int:
    """Ranks of this job; 1 without a launcher, and in a process that a rank has started."""
    if parent() is not None:
        return 1
    return max(int(os.environ.get(name) or 1) for name in _SIZES)


def rank() -> int:
    """This rank; 0 without a launcher, and in a process that a rank has started."""
    return 0 if parent() is not None else _first_number(_RANKS, 0)


def mark_joined(rank: int, size: int) -> None:
    """Mark this process as a rank, so that processes which it starts know that they are none."""
    os.environ[_JOINED] = f"{os.getpid()}/{rank}/{size}/{_job()}"


def parent() -> tuple[int, int] | None:
    """(rank, size) of the rank that has started this process; None if no rank has."""
    match = re.fullmatch(r"(\d+)/(\d+)/(\d+)/(.*)", os.environ.get(_JOINED, ""))
    if match is None or int(match[1]) == os.getpid() or match[4] != _job():
        return None
    return int(match[2]), int(match[3])


def forget_parent(environment: dict[str, str]) -> None:
    """Remove the mark from `environment`, so that the processes of another job can be ranks."""
    environment.pop(_JOINED, None)


PROGRESS = "SWARM_TF_PROGRESS"
"""A variable of `swarmrun --restarts`: a file that a rank creates when it has made progress."""

RESTARTED = "SWARM_TF_RESTARTED"
"""A variable of `swarmrun --restarts`: how often the job has been started again."""


def note_progress() -> None:
    """This rank has made progress that is on disk."""
    if path := os.environ.get(PROGRESS):
        with contextlib.suppress(OSError):  # swarmrun's directory may be on another host
            open(path, "w").close()


def is_restart() -> bool:
    """Whether swarmrun or Slurm has started this job again."""
    return _first_number((RESTARTED, "SLURM_RESTART_COUNT"), 0) > 0


def _job() -> str:
    return " ".join(os.environ.get(name, "") for name in _JOBS)


def local_rank() -> int:
    """This rank's number among those on its machine; 0 without a launcher."""
    return _first_number(_LOCAL_RANKS, 0)


def local_size() -> int:
    """Ranks on this machine; 1 without a launcher."""
    return _first_number(_LOCAL_SIZES, 1)


def rank_and_host() -> str:
    """This rank and its host, for messages."""
    return f"rank {rank()} on {os.uname().nodename}"


def owns_gpus() -> bool:
    """Whether Slurm gave this rank GPUs that no other one sees (--gpus-per-task)."""
    return "SLURM_GPUS_PER_TASK" in os.environ


def launcher() -> str | None:
    """The launcher that started this rank, as far as the environment shows; None without one."""
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ:
        return "horovodrun --gloo"
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return OPEN_MPI
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return f"srun --mpi={os.environ.get('SLURM_MPI_TYPE', 'none')}"
    if "PMI_SIZE" in os.environ:
        return "an mpiexec of the MPICH family"
    return None


def mpi_name(library: str) -> str:
    """Name and version, such as "Open MPI v5.0.11", from MPI's Get_library_version."""
    return re.sub(r"[\s:]+", " ", re.split(r",|\n", library)[0]).strip("\0 ")


def can_start(library: str) -> bool:
    """False if starting this MPI would end a process that this rank's launcher has started.

    A launcher of another MPI usually leaves each rank alone, which shows once MPI runs. But some
    MPIs then end the process with a message of their own: only these cases are False.
    """
    started = launcher() or ""
    if started == OPEN_MPI:
        return "Open MPI" in library
    if not started.startswith("srun") or "pmix" in started or "Open MPI v4" not in library:
        return True
    if started.endswith("none"):
        return False
    # Version 4 may have been built for Slurm's older plugins.
    code, output, _ = subprocesses.run("ompi_info", "--parsable")
    return code != 0 or re.search(r"mca:pmix:s[12]:", output) is not None


def fitting_launchers(library: str) -> str:
    """The launchers that start ranks of an MPI library, in words."""
    plugin = "pmix" if "Open MPI" in library else "pmi2"
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return f"srun --mpi={plugin}"
    return f"swarmrun, its own mpirun, or srun --mpi={plugin}"


def _first_number(names: tuple[str, ...], default: int) -> int:
    """The number at the start of the first of these variables that has one."""
    # Slurm writes "4(x2),3": four tasks on each of two nodes, then three.
    found = (re.match(r"\d+", os.environ.get(name, "")) for name in names)
    return next((int(match[0]) for match in found if match), default)
