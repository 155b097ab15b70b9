"""A private Slurm on this machine: real daemons on free ports, no GPUs, no cgroups. Needs root."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

CPUS = 8  # that Slurm counts, whatever the machine has; jobs are small
NEEDED = ("slurmctld", "slurmd", "srun", "sbatch", "munged", "munge")

CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=YES State=UP
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=1000
MpiDefault=none
FirstJobId={job}
ReturnToService=2
SlurmdParameters=config_overrides
InactiveLimit=0
KillWait=30
"""


class Missing(Exception):
    """Slurm cannot run here; the message says why."""


class LoopbackSlurm:
    """Starts Slurm on entry, stops it on exit.

    Attributes:
      environment: variables with which Slurm's commands reach it.

    Raises:
      Missing: on entry.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._munge: subprocess.Popen | None = None
        self._ready = False

    def __enter__(self) -> "LoopbackSlurm":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as last:  # calls each, even if another one raises
            last.callback(shutil.rmtree, self.folder, ignore_errors=True)
            if self._munge:
                last.callback(self._munge.wait, 10)
                last.callback(self._munge.terminate)
            for name in ("slurmctld", "slurmd"):
                last.callback(self._stop, name)
            if self._ready:
                last.callback(self.end_jobs)

    def end_jobs(self) -> None:
        """Ends all jobs; once Slurm has stopped, nothing would end their processes."""
        self.call("scancel", "--state=RUNNING", "--signal=KILL", "--user=root")
        self.call("scancel", "--user=root")
        until(lambda: not self.call("squeue", "--noheader"), "all jobs to end")

    def _stop(self, name: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it never ran
            pid = int((self.folder / f"{name}.pid").read_text())
            os.kill(pid, 15)
            until(lambda: not Path(f"/proc/{pid}").exists(), f"{name} to end")

    def call(self, *command: str, timeout: float = 60) -> str:
        """What a command of Slurm prints; the command must succeed."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """State of a job and why it is not running, in squeue's words; empty if it is over."""
        return self.call("squeue", "--noheader", f"--jobs={job}", "--format=%T %r").strip()

    def _start(self) -> None:
        missing = [name for name in NEEDED if not shutil.which(name, path=_PATH)]
        if missing:
            raise Missing(
                f"no {', '.join(missing)}; Debian has them in slurm-wlm, munge and libpmix-dev"
            )
        if os.geteuid() != 0:
            raise Missing("Slurm's daemons need root")
        self._start_munge()
        host = socket.gethostname().partition(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        # A new job number each time: MPIs name files by it, and killed ranks may leave those.
        job = random.randrange(1, 10**7)
        text = CONFIGURATION.format(
            host=host, ports=_free_ports(2), cpus=CPUS, folder=self.folder, job=job
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for name in ("slurmctld", "slurmd"):
            daemon = shutil.which(name, path=_PATH)
            configured = [daemon, "-f", str(self.folder / "slurm.conf")]
            subprocess.run(configured, env=self.environment, check=True, timeout=60)
        ready = ("sinfo", "--noheader", "--format=%T")
        until(lambda: self.call(*ready).strip() in ("idle", "mixed"), "the node to be idle")
        self._ready = True

    def _start_munge(self) -> None:
        """Starts munged unless one runs: authentication needs one daemon per machine."""
        if not _munge_answers():
            for name in ("/run/munge", "/var/lib/munge", "/var/log/munge", "/etc/munge"):
                Path(name).mkdir(exist_ok=True)
                shutil.chown(name, "munge", "munge")
                Path(name).chmod(0o755 if name == "/run/munge" else 0o700)
            key = Path("/etc/munge/munge.key")
            if not key.exists():
                key.touch(0o400)
                key.write_bytes(os.urandom(1024))
                shutil.chown(key, "munge", "munge")
            self._munge = subprocess.Popen(
                [shutil.which("munged", path=_PATH), "--foreground"],
                user="munge",
                group="munge",
                stderr=subprocess.DEVNULL,
            )
            until(_munge_answers, "munged to answer")


_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def _munge_answers() -> bool:
    done = subprocess.run(
        ["munge", "-n"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    return done.returncode == 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def until(happened, what: str, seconds: float = 30) -> None:
    """Waits until `happened()`; fails with `what` it waited for after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)
