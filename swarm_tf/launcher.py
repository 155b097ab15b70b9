"""What a launcher tells its ranks through their environment, before any MPI is started."""

from __future__ import annotations

import os
import re

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE")


def size() -> int:
    """Ranks of this job; 1 without a launcher."""
    return max(int(os.environ.get(name) or 1) for name in _SIZES)


def rank() -> int:
    """This rank; 0 without a launcher."""
    return _first(_RANKS, 0)


def local_rank() -> int:
    """This rank among those on its machine; 0 without a launcher."""
    return _first(_LOCAL_RANKS, 0)


def local_size() -> int:
    """Ranks on this machine; 1 without a launcher."""
    return _first(_LOCAL_SIZES, 1)


def _first(names: tuple[str, ...], default: int) -> int:
    # Slurm writes "4(x2),3": four tasks on each of two nodes, then three.
    found = (re.match(r"\d+", os.environ.get(name, "")) for name in names)
    return next((int(match[0]) for match in found if match), default)
