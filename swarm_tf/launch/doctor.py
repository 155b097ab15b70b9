"""Checks what a swarm needs: on this machine, and between ranks. Says what to change.

    swarm-tf doctor                          # what is installed
    swarmrun -n 2 -m swarm_tf doctor         # also how these ranks reach each other; likewise with
    srun -n 2 python -m swarm_tf doctor      # mpirun, srun and horovodrun

Ends with OK and exit code 0, or with a line for each thing to change and exit code 1.
"""

from __future__ import annotations

import importlib
import itertools
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata

import numpy as np

from swarm_tf.cluster import environment, startup_logs, subprocesses, world
from swarm_tf.errors import UsageError
from swarm_tf.launch import swarmrun
from swarm_tf.transport import collectives
from swarm_tf.transport.base import Transport

_WEIGHTS = 2**18
_BITS = 8
_ROUNDS = 5  # the first exchange of a lattice is exact
_PINGS = 50
_PIECE = 2**20  # float32 numbers: 4 MiB
_ALL_PAIRS = 8  # up to so many ranks every pair is measured; above, each rank and the next one
_SECONDS = 60.0
_COMMON = ("Python", "TensorFlow", "Keras", "mpi4py", "MPI")
"""What all ranks should have in the same version."""


@dataclass(frozen=True)
class Rank:
    """What one rank finds where it runs."""

    host: str
    cores: int  # that it may use; other ranks on its host may use the same ones
    local_ranks: int  # ranks on its host, itself included
    gpus: int
    own_gpus: bool  # whether no other rank sees the same ones
    versions: dict[str, str]


@dataclass(frozen=True)
class Link:
    """What two ranks measured while both were sending to each other."""

    ranks: tuple[int, int]
    latency: float  # seconds, one way
    bandwidth: float  # bytes a second, each way

    def __str__(self) -> str:
        a, b = self.ranks
        return (
            f"ranks {a} and {b}: {self.latency * 1e3:.2f} ms, "
            f"{self.bandwidth * 8e-6:,.0f} mbit/s each way"
        )


def main(arguments: list[str]) -> int:
    """Prints on rank 0; returns 0 if all is well, 1 if something should be changed."""
    if arguments:
        print("usage: swarm-tf doctor", file=sys.stderr)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    problems = []
    try:
        for problem in _examine(world.transport()):
            problems.append(problem)
    except (UsageError, TimeoutError) as error:
        problems.append(str(error))
        if not world.is_rank_zero():  # rank 0 may not know of it
            print(f"To change: {environment.rank_and_host()}: {error}", flush=True)
    if world.is_rank_zero():
        print("\n".join(f"To change: {problem}" for problem in problems) or "OK", flush=True)
    return 1 if problems else 0


def _examine(transport: Transport | None) -> Iterator[str]:
    """Prints what it finds, on rank 0; yields what should be changed, in words."""
    say = print if world.is_rank_zero() else lambda *_: None
    here, broken = inspect_rank(transport)
    ranks = [Rank(**one) for one in world.gather(asdict(here), "what every rank has")]
    wrong = list(dict.fromkeys(itertools.chain(*world.gather(broken, "what is wrong"))))
    yield from wrong
    started = environment.launcher() or "no launcher"
    say(f"{_ranks(len(ranks))}, started by {started}")
    for name, version in here.versions.items():
        say(f"  {name:<12} {version}")
    for number, rank in enumerate(ranks):
        own = f"{rank.cores} cores" + f" for {_ranks(rank.local_ranks)}" * (rank.local_ranks > 1)
        say(f"  rank {number:<7} {rank.host}: {own}, {rank.gpus} GPUs")
    yield from differences(ranks)
    yield from hosts_short_of_gpus(ranks)
    if wrong:
        return
    if transport is None:
        say("To check exchanges between ranks: swarmrun -n 2 -m swarm_tf doctor")
        return
    yield from exchange(transport)
    by_bandwidth = sorted(measure(transport), key=lambda link: link.bandwidth)
    say(f"  slowest link {by_bandwidth[0]}")
    say(f"  fastest link {by_bandwidth[-1]}")


def inspect_rank(transport: Transport | None) -> tuple[Rank, list[str]]:
    """What this rank finds, and what is wrong with it, in words."""
    problems: list[str] = []
    versions = {"Python": platform.python_version()}
    gpus = _frameworks(versions, problems)
    versions["mpi4py"] = _version("mpi4py")
    try:
        library = swarmrun.mpi_library()
        versions["MPI"] = f"{environment.mpi_name(library)}, {_thread_level(transport)}"
        if "MULTIPLE" not in versions["MPI"] and "MPI_THREAD" in versions["MPI"]:
            problems.append(f"{versions['MPI']}: use an MPI built with MPI_THREAD_MULTIPLE")
        if transport is None:
            versions["mpirun"] = swarmrun.find_mpirun(library)
    except UsageError as error:
        problems.append(str(error))
    if slurm := _output("srun", "--version").removeprefix("slurm "):
        versions["Slurm"] = f"{slurm}, --mpi={'|'.join(_plugins())}"
    versions["Horovod"] = _horovod(problems)
    if not gpus and shutil.which("nvidia-smi") and "GPU" in _output("nvidia-smi", "-L"):
        problems.append("this machine has a GPU, but TensorFlow sees none; pip install '.[gpu]'")
    here = Rank(
        host=os.uname().nodename,
        cores=len(os.sched_getaffinity(0)),
        local_ranks=environment.local_size(),
        gpus=gpus,
        own_gpus=environment.owns_gpus(),
        versions=versions,
    )
    return here, problems


def differences(ranks: list[Rank]) -> Iterator[str]:
    """Versions that differ between ranks."""
    first = ranks[0].versions
    for number, rank in enumerate(ranks):
        for name in _COMMON:
            ours, its = first.get(name, "not there"), rank.versions.get(name, "not there")
            if ours != its:
                yield f"{name} is {ours} on rank 0 and {its} on rank {number} ({rank.host})"


def hosts_short_of_gpus(ranks: list[Rank]) -> Iterator[str]:
    """Hosts with fewer GPUs than ranks."""
    for rank in {rank.host: rank for rank in ranks}.values():
        if not rank.own_gpus and 0 < rank.gpus < rank.local_ranks:
            yield f"{_ranks(rank.local_ranks)} share {rank.gpus} GPUs on {rank.host}; start fewer"


def exchange(transport: Transport) -> Iterator[str]:
    """Average quantized models, each rank with the next one; their mean must not change."""
    import keras

    from swarm_tf import codec
    from swarm_tf.cluster import devices
    from swarm_tf.member import Member
    from swarm_tf.weights import FlatWeights

    devices.claim_gpu()
    common = np.random.default_rng(0).normal(size=_WEIGHTS).astype(np.float32)
    own = np.random.default_rng([1, transport.rank]).normal(scale=1e-3, size=_WEIGHTS)
    model = keras.Variable((common + own).astype(np.float32).reshape(512, -1))

    def sums() -> list[float]:
        away = model.numpy().ravel().astype(np.float64) - common
        return [float(away.sum()), float(np.square(away).sum())]

    before = sums()
    member = Member(FlatWeights([model]), transport, codec.build("lattice", _BITS))
    member.start()
    for step in range(_ROUNDS):
        member.boundary(step, lambda _: (transport.rank + 1) % transport.size)
        member.wait()
    member.finish(_ROUNDS)
    counters = member.counters
    every = world.gather(
        [before, sums(), [counters.exchanges, counters.payload_bytes]], "the results of exchanges"
    )
    (mean, distance), (mean_after, distance_after), (count, sent) = np.sum(every, axis=0)
    if world.is_rank_zero():
        share = sent / max(count, 1) / _WEIGHTS
        print(f"  exchanges    {count:.0f}, of {_WEIGHTS:,} weights in {share:.2f} bytes each")
    # Rounding to float32 moves a sum of n numbers by about sqrt(n) roundings.
    if abs(mean_after - mean) > 1e-4 * _WEIGHTS**0.5 or not distance_after < distance:
        yield (
            f"exchanges moved the mean by {mean_after - mean:g}, and the models' distance from "
            f"{distance:g} to {distance_after:g}: something between the ranks alters data"
        )


def measure(transport: Transport) -> list[Link]:
    """Latency and bandwidth of pairs of ranks, one pair after the other."""
    ranks = range(transport.size)
    pairs = list(itertools.combinations(ranks, 2))
    if transport.size > _ALL_PAIRS:
        pairs = [(rank, (rank + 1) % transport.size) for rank in ranks]
    found: list[list[float]] = []
    for pair in pairs:
        if transport.rank in pair:
            (other,) = set(pair) - {transport.rank}
            latency = statistics.median(_sendrecv(transport, other, 1) for _ in range(_PINGS))
            seconds = statistics.median(_sendrecv(transport, other, _PIECE) for _ in range(3))
            found.append([*pair, latency, 4 * _PIECE / seconds])
        what = f"ranks {pair[0]} and {pair[1]} to measure their link"
        world.gather(None, what, 2 * _SECONDS)
    # Both ranks of a pair measured it: the later entry replaces the earlier one.
    every = itertools.chain(*world.gather(found, "the links"))
    links = {(int(a), int(b)): Link((int(a), int(b)), t, w) for a, b, t, w in every}
    return list(links.values())


def _sendrecv(transport: Transport, other: int, numbers: int) -> float:
    """Seconds in which two ranks send each other so many float32 numbers."""
    array, into = np.zeros(numbers, np.float32), np.zeros(numbers, np.float32)
    began = time.perf_counter()
    collectives.run([collectives.sendrecv(transport, {other: array}, {other: into}, 0, _SECONDS)])
    return time.perf_counter() - began


def _frameworks(versions: dict[str, str], problems: list[str]) -> int:
    """Looks at TensorFlow and Keras; returns the number of GPUs that TensorFlow sees."""
    try:
        with startup_logs.start():
            import tensorflow as tf
    except ImportError as error:
        problems.append(f"no TensorFlow ({_first_line(error)}); pip install '.[cpu]' or '.[gpu]'")
        return 0
    versions["TensorFlow"] = tf.__version__
    versions["Keras"] = _version("keras")
    try:
        import keras

        backend = keras.backend.backend()
    except ImportError as error:  # of Keras, or of another backend that is not there
        reason = _first_line(error)
        problems.append(f"Keras cannot be loaded ({reason}); set KERAS_BACKEND=tensorflow")
        backend = "tensorflow"
    if backend != "tensorflow":
        problems.append(f"Keras runs on {backend}; set KERAS_BACKEND=tensorflow, or unset it")
    return len(tf.config.list_physical_devices("GPU"))


def _thread_level(transport: Transport | None) -> str:
    """The thread level of MPI; read in another process if this one has no MPI."""
    if transport is not None:
        return "MPI_THREAD_MULTIPLE"  # otherwise there would be no transport
    program = (
        "import mpi4py; mpi4py.rc.thread_level = 'multiple'; from mpi4py import MPI; "
        "print(['SINGLE', 'FUNNELED', 'SERIALIZED', 'MULTIPLE'][MPI.Query_thread()])"
    )
    # Without a launcher's variables, so that the process is one rank alone.
    alone = ("PMI", "PRTE_", "OMPI_COMM_", "SLURM_")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(alone)}
    level = _output(sys.executable, "-c", program, env=variables).splitlines()[-1:]
    return f"MPI_THREAD_{level[0]}" if level else "cannot be started here alone"


def _horovod(problems: list[str]) -> str:
    version = _version("horovod")
    if version == "not installed":
        return "not installed (optional)"
    if problems:  # which may be why Horovod fails too
        return version
    try:
        with startup_logs.start():
            hvd = importlib.import_module("horovod.tensorflow")
    except Exception as error:  # whatever its library finds missing
        problems.append(f"Horovod cannot be loaded ({_first_line(error)}); build it: make horovod")
        return version
    return f"{version} {'with' if hvd.mpi_built() else 'without'} MPI"


def _plugins() -> list[str]:
    words = _output("srun", "--mpi=list").split()
    return [name for name in ("pmix", "pmi2", "none") if name in words]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _output(*words: str, env: Mapping[str, str] | None = None) -> str:
    """What a program prints; nothing if it fails."""
    code, output, errors = subprocesses.run(*words, env=env)
    return (output or errors).strip() if code == 0 else ""


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count != 1)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
