"""Every way to start ranks on this machine, from mpirun to several hosts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_tf import UsageError
from swarm_tf.launch import swarmrun
from testbed.launchers import BINDING, OPEN_MPI
from testbed.network import Network, Unavailable

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Local SGD, since a swarm takes three times as long to compile; `srun` and the doctor test it.
SMALL = ["train.py", "--config=configs/digits_resnet.py", "--config.train.max_steps=20"]
SMALL += ["--config.algorithm=local_sgd"]
ONE_LINE = "train.py: "


def run(*command, **environment):
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, **environment, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def trained(done, workdir, ranks):
    """The summary of a run that has trained on all its ranks."""
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["ranks"] == ranks
    assert summary["exchanges"] > 0
    assert summary["exchanges_failed"] == 0
    return summary


def refused(done):
    """The one line with which train.py refused to train."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(ONE_LINE)]
    return line


@pytest.fixture(scope="module")
def library():
    return swarmrun.mpi_library()


@pytest.mark.slow  # swarmrun, which starts most ranks of the tests, calls exactly this
def test_mpirun_starts_ranks_that_train(tmp_path):
    # swarmrun knows which settings mpirun needs as root, and with more ranks than cores.
    job = swarmrun.plan(["-n", "2", "train.py"])
    command, environment = job.command, job.variables
    done = run(command[0], "-n", 2, "python", *SMALL, f"--workdir={tmp_path}", **environment)
    trained(done, tmp_path, 2)


@pytest.mark.matrix
@pytest.mark.slow
def test_swarmrun_starts_a_module_whose_ranks_exchange():
    done = run("swarmrun", "-n", 2, "-m", "swarm_tf", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\nOK\n")
    # Each rank requests five; two requests that cross are one exchange.
    assert int(re.search(r"exchanges +(\d+), of", done.stdout)[1]) >= 5


@pytest.mark.slow
def test_horovodrun_starts_ranks_that_train(tmp_path):
    if not (BIN / "horovodrun").exists():
        pytest.skip("no horovodrun in this environment: make horovod builds it")
    start = ("horovodrun", "-np", 2, f"--binding-args={BINDING}", "python")
    done = run(*start, *SMALL, f"--workdir={tmp_path}", **OPEN_MPI)
    trained(done, tmp_path, 2)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1"},
            "started as 2 ranks by horovodrun --gloo",
        ),
        ({"PMI_SIZE": "3", "PMI_RANK": "0"}, "started as 3 ranks by an mpiexec of the MPICH"),
    ],
    ids=["gloo", "mpich"],
)
def test_ranks_that_are_alone_in_mpi_are_refused(tmp_path, library, environment, words):
    line = refused(run("python", *SMALL, f"--workdir={tmp_path}", **environment))
    assert words in line
    plugin = "pmix" if "Open MPI" in library else "pmi2"
    assert line.endswith(f"use swarmrun, its own mpirun, or srun --mpi={plugin}")


@pytest.mark.matrix
def test_ranks_that_the_mpirun_of_another_mpi_started_are_refused(tmp_path, library):
    own = "Open MPI" in library
    other = ROOT / (".venv-mpich/bin/mpiexec" if own else ".venv/bin/mpirun")
    if not other.exists():
        pytest.skip(f"no {other.relative_to(ROOT)}: make matrix makes it")
    environment = {} if own else OPEN_MPI
    done = run(other, "-n", 2, sys.executable, *SMALL, f"--workdir={tmp_path}", **environment)
    launcher, fitting = (
        ("an mpiexec of the MPICH family", "pmix") if own else ("Open MPI's mpirun", "pmi2")
    )
    line = refused(done)
    assert f"started as 2 ranks by {launcher}" in line
    assert f"use swarmrun, its own mpirun, or srun --mpi={fitting}" in line


@pytest.mark.matrix
@pytest.mark.slow
def test_mpi_without_threads_is_refused(tmp_path):
    script = tmp_path / "single.py"
    script.write_text(
        "import sys\n"
        "import mpi4py; mpi4py.rc.thread_level = 'single'\n"
        "from mpi4py import MPI\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import train\n"
        "sys.exit(train.main(['train.py', *sys.argv[1:]]))\n"
    )
    done = run("swarmrun", "-n", 2, script, *SMALL[1:], f"--workdir={tmp_path / 'run'}")
    assert "without MPI_THREAD_MULTIPLE" in refused(done)


@pytest.mark.matrix
def test_the_mpirun_of_another_mpi_is_refused(monkeypatch, library):
    monkeypatch.setenv("PATH", str(Path(swarmrun.find_mpirun(library)).parent))
    other = "MPICH Version: 4.2" if "Open MPI" in library else "Open MPI v5.0.1, package: x"
    with pytest.raises(UsageError, match=r"mpi(run|exec)\S* is of another MPI than (MPICH|Open)"):
        swarmrun.find_mpirun(other)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(2, marks=[pytest.mark.matrix, pytest.mark.slow]),
        pytest.param(4, marks=pytest.mark.slow),
    ],
)
def test_a_run_across_hosts_exchanges_over_the_network(tmp_path, count):
    try:
        with Network(count, "1gbit") as network:
            environment = network.as_hosts(tmp_path / "shell")
            hosts = ",".join(f"{host}:1" for host in network.hosts)
            start = ("swarmrun", "-n", count, "--hosts", hosts)
            workdir = tmp_path / "run"
            done = run(*start, *SMALL, f"--workdir={workdir}", **environment)
            summary = trained(done, workdir, count)
            crossed = [network.bytes_sent(rank) for rank in range(count)]
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert sum(crossed) > summary["bytes_sent"]
    assert min(crossed) > summary["bytes_sent"] / count / 4
