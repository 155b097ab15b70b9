"""Which launchers start a swarm here, and how long does each take to its first training step?

    make .venv-mpich/ready .venv-debian/ready
    python -m benchmarks.launchers --out=launchers .venv .venv-mpich .venv-debian

Every environment has an MPI of its own. In each it tries mpirun, swarmrun, srun on a Slurm that it
starts, horovodrun if Horovod is installed, and swarmrun across hosts, which are network namespaces.
Four ranks train a ResNet-8 on digits for 20 steps. Seconds run from the command to the end of the
first step (processes, imports, data, compilation), the median of the rounds. Writes OUT/table.md.
Needs Linux and root.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich import box
from rich.table import Table

from benchmarks.runs import write_table
from testbed.launchers import BINDING, OPEN_MPI
from testbed.network import Network, Unavailable
from testbed.slurm import LoopbackSlurm, Missing

RANKS = 4
HOSTS = (2, 4)
BANDWIDTH = "1gbit"  # of a host's link
SECONDS = 600.0  # of a start, at most
WIDTH = 150
TRAIN = ["train.py", "--config=configs/digits_resnet.py", "--config.train.max_steps=20"]


@dataclass
class Start:
    """A launcher, its command, and the result.

    Attributes:
      words: of the command, before train.py.
      seconds: from the command to the end of the first step, one per round.
      failure: why it did not train; empty if it did.
    """

    launcher: str
    words: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    hosts: int = 1
    seconds: list[float] = field(default_factory=list)
    failure: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints and writes the table; returns the number of starts that failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launchers")
    parser.add_argument(
        "environments", nargs="+", type=Path, help="directories of virtual environments"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the table")
    parser.add_argument("--rounds", type=int, default=3, help="%(default)s")
    args = parser.parse_args(argv)
    started = dict(measure(place.absolute(), args.rounds) for place in args.environments)
    write_table(lambda frame: table(started, frame), args.out, WIDTH)
    return sum(bool(start.failure) for starts in started.values() for start in starts)


def measure(place: Path, rounds: int) -> tuple[str, list[Start]]:
    """The MPI of an environment, and its launchers with their times; a round starts each once."""
    program = (
        "from swarm_tf.cluster.environment import mpi_name; "
        "from swarm_tf.launch.swarmrun import mpi_library; print(mpi_name(mpi_library()))"
    )
    mpi = subprocess.run(
        [place / "bin/python", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    ).stdout.strip()
    with ExitStack() as stack:
        starts = list(_starts(place / "bin", mpi, stack))
        for _ in range(rounds):
            for start in starts:
                if not start.failure:
                    _time(start, place / "bin")
    return mpi, starts


def table(started: Mapping[str, Sequence[Start]], frame: box.Box) -> Table:
    """One line per launcher."""
    result = Table(box=frame, pad_edge=frame is box.MARKDOWN)
    for heading in ("MPI", "launcher"):
        result.add_column(heading, no_wrap=True)
    for heading in ("hosts", "ranks", "result", "s to the first step", "times mpirun's"):
        result.add_column(heading, justify="right", no_wrap=True)
    for mpi, starts in started.items():
        plain = median(starts[0].seconds) if starts[0].seconds else float("nan")
        for start in starts:
            trained = not start.failure
            seconds = median(start.seconds) if trained else float("nan")
            result.add_row(
                mpi,
                start.launcher,
                str(start.hosts),
                str(RANKS),
                "trains" if trained else start.failure,
                f"{seconds:.1f}" if trained else "-",
                f"{seconds / plain:.2f}" if trained else "-",
            )
    return result


def _starts(bin_: Path, mpi: str, stack: ExitStack) -> Iterator[Start]:
    """The launchers to try; mpirun comes first."""
    open_mpi = "Open MPI" in mpi
    needs = OPEN_MPI if open_mpi else {}
    own = bin_ / "mpirun"
    mpirun = str(own) if own.exists() else "mpirun"
    binding = ["--bind-to", "none"] if open_mpi else []
    yield Start("mpirun", [mpirun, "-n", str(RANKS), *binding, "python"], needs)
    yield Start("swarmrun", ["swarmrun", "-n", str(RANKS)])
    plugin = "pmix" if open_mpi else "pmi2"
    srun = Start(f"srun --mpi={plugin}", ["srun", f"--mpi={plugin}", f"-n{RANKS}", "python"])
    try:
        srun.environment = stack.enter_context(LoopbackSlurm()).environment
    except Missing as reason:
        srun.failure = str(reason)
    yield srun
    if (bin_ / "horovodrun").exists():
        words = ["horovodrun", "-np", str(RANKS), f"--binding-args={BINDING}", "python"]
        yield Start("horovodrun", words, needs)
    network = Network(max(HOSTS), BANDWIDTH)
    shell = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "shell"
    failure, environment = "", {}
    try:
        environment = stack.enter_context(network).as_hosts(shell)
    except Unavailable as reason:
        failure = str(reason)
    for count in HOSTS:
        hosts = ",".join(f"{host}:{RANKS // count}" for host in network.hosts[:count])
        words = ["swarmrun", "-n", str(RANKS), "--hosts", hosts]
        yield Start("swarmrun --hosts", words, environment, count, failure=failure)


def _time(start: Start, bin_: Path) -> None:
    """Times one start, or notes why it failed."""
    print("$", *start.words, *TRAIN, flush=True)
    environment = {**os.environ, **start.environment, "PATH": f"{bin_}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryFile("w+") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            [*start.words, *TRAIN, "--config.train.log_every=1", f"--workdir={workdir}"],
            env=environment,
            stdout=output,
            stderr=output,
        )
        metrics, first = Path(workdir) / "metrics.jsonl", None
        while process.poll() is None and time.monotonic() < began + SECONDS:
            if first is None and metrics.exists() and metrics.stat().st_size:
                first = time.monotonic() - began
            time.sleep(0.02)
        process.kill()
        output.seek(0)
        if process.wait() or first is None:
            lines = output.read().strip().splitlines()
            start.failure = f"exit code {process.returncode}: {(lines or [''])[-1]}"
        else:
            start.seconds.append(first)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
