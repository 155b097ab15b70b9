"""What a launcher tells its ranks through their environment, before any MPI is started."""

from __future__ import annotations

import os
import re

from swarm_tf.cluster import subprocesses

OPEN_MPI = "Open MPI's mpirun"
"""A `name` of a launcher."""

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
"""Set by a rank that has joined the others, for the processes that it starts: those inherit what a
launcher told it, but are no ranks. Process, number, ranks, and the job they belong to."""

_JOBS = ("PMIX_NAMESPACE", "PMI_JOBID", "SLURM_STEP_ID", "HYDI_CONTROL_FD", "PMI_FD")


def size() -> int:
    """Ranks of this job; 1 without a launcher, and in a process that a rank has started."""
    if parent() is not None:
        return 1
    return max(int(os.environ.get(name) or 1) for name in _SIZES)


def rank() -> int:
    """This rank; 0 without a launcher, and in a process that a rank has started."""
    return 0 if parent() is not None else _first(_RANKS, 0)


def joined(rank: int, size: int) -> None:
    """This process is a rank now, and what it starts is none."""
    os.environ[_JOINED] = f"{os.getpid()}/{rank}/{size}/{_job()}"


def parent() -> tuple[int, int] | None:
    """The rank that has started this process, and how many there are; None if that is no rank."""
    match = re.fullmatch(r"(\d+)/(\d+)/(\d+)/(.*)", os.environ.get(_JOINED, ""))
    if match is None or int(match[1]) == os.getpid() or match[4] != _job():
        return None
    return int(match[2]), int(match[3])


def forget_parent(environment: dict[str, str]) -> None:
    """Let the ranks of another job, which a rank starts, be ranks."""
    environment.pop(_JOINED, None)


def _job() -> str:
    return " ".join(os.environ.get(name, "") for name in _JOBS)


def local_rank() -> int:
    """This rank among those on its machine; 0 without a launcher."""
    return _first(_LOCAL_RANKS, 0)


def local_size() -> int:
    """Ranks on this machine; 1 without a launcher."""
    return _first(_LOCAL_SIZES, 1)


def here() -> str:
    """This rank, for whoever reads of it."""
    return f"rank {rank()} on {os.uname().nodename}"


def owns_gpus() -> bool:
    """Whether Slurm gave this rank GPUs that no other one sees (--gpus-per-task)."""
    return "SLURM_GPUS_PER_TASK" in os.environ


def name() -> str | None:
    """Who started this rank, as far as its environment tells; None if nobody did."""
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ:
        return "horovodrun --gloo"
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return OPEN_MPI
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return f"srun --mpi={os.environ.get('SLURM_MPI_TYPE', 'none')}"
    if "PMI_SIZE" in os.environ:
        return "an mpiexec of MPICH's kin"
    return None


def mpi_name(library: str) -> str:
    """ "Open MPI v5.0.11" of all that an MPI library says of itself (Get_library_version)."""
    return re.sub(r"[\s:]+", " ", re.split(r",|\n", library)[0]).strip("\0 ")


def can_start(library: str) -> bool:
    """Whether the launcher of this rank starts ranks of an MPI, as far as it must be known before.

    Where it does not, ranks are each alone, which shows once MPI runs. But some MPIs then end the
    process in words of their own; these cases are False.
    """
    started = name() or ""
    if started == OPEN_MPI:
        return "Open MPI" in library
    if not started.startswith("srun") or "pmix" in started or "Open MPI v4" not in library:
        return True
    if started.endswith("none"):
        return False
    # Version 4 may have been built for Slurm's older plugins.
    code, output, _ = subprocesses.ask("ompi_info", "--parsable")
    return code != 0 or re.search(r"mca:pmix:s[12]:", output) is not None


def fitting(library: str) -> str:
    """Which launchers start ranks of an MPI library, by its name."""
    plugin = "pmix" if "Open MPI" in library else "pmi2"
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return f"srun --mpi={plugin}"
    return f"swarmrun, its own mpirun, or srun --mpi={plugin}"


def _first(names: tuple[str, ...], default: int) -> int:
    # Slurm writes "4(x2),3": four tasks on each of two nodes, then three.
    found = (re.match(r"\d+", os.environ.get(name, "")) for name in names)
    return next((int(match[0]) for match in found if match), default)
