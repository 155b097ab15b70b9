"""Ranks behind limited links, each in a network namespace with `tc tbf`. Needs Linux and root.

Every rank has a link of its own to a switch, with the same limit in both directions, as machines
in a rack have. MPI, and Horovod over MPI, have to cross it by TCP, since ranks share no memory.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_SUBNET = "10.77.0"
_BURST_SECONDS = 0.002  # of traffic that may leave at once; the kernel's timer is no finer
_QUEUE_SECONDS = 0.05


class Unavailable(Exception):
    """Namespaces or limits cannot be created here; the message says what is missing."""


_REMOTE_SHELL = """#!/bin/sh
# Replaces ssh: host {subnet}.K is the network namespace {name}-(K - 1), with its own host name.
while [ "${{1#-}}" != "$1" ]; do shift; done
number=${{1##*.}}
shift
exec env -i HOME="$HOME" PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    ip netns exec "{name}-$((number - 1))" unshare --uts sh -c "hostname host$number; $*"
"""


class Network:
    """Creates `ranks` namespaces on entry, removes them on exit: ranks of one mpirun, or hosts.

    Attributes:
      hosts: the addresses of the namespaces.

    Args:
      ranks: at most 250.
      bandwidth: of each link in each direction, as tc understands it: "100mbit", "1gbit".

    Raises:
      Unavailable: on entry, if a permission or a tool is missing; nothing is left behind.
    """

    def __init__(self, ranks: int, bandwidth: str) -> None:
        self.ranks, self.bandwidth = ranks, bandwidth
        self.hosts = [f"{_SUBNET}.{number + 1}" for number in range(ranks)]
        self.name = f"swarm{os.getpid()}"

    def __enter__(self) -> "Network":
        try:
            self._make()
        except (OSError, subprocess.CalledProcessError) as error:
            self._remove()
            reason = getattr(error, "stderr", "") or str(error)
            raise Unavailable(
                f"--bandwidth={self.bandwidth} needs Linux, ip and tc (iproute2), and root or "
                f"CAP_NET_ADMIN and CAP_SYS_ADMIN: {reason.strip()}"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._remove()

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command that mpirun must start to run `command` in the namespace of each rank."""
        script = f'exec ip netns exec {self.name}-$OMPI_COMM_WORLD_RANK "$@"'
        return ["sh", "-c", script, "sh", *command]

    def environment(self) -> dict[str, str]:
        """Variables that make Open MPI cross the links."""
        subnet = f"{_SUBNET}.0/24"
        return {
            "OMPI_MCA_pml": "ob1",
            "OMPI_MCA_btl": "tcp,self",
            "OMPI_MCA_btl_tcp_if_include": subnet,
            # Ranks report to mpirun, which is outside.
            "PMIX_MCA_ptl_base_if_include": subnet,
        }

    def as_hosts(self, shell: Path) -> dict[str, str]:
        """Variables that let a launcher reach `hosts` by a remote shell, written to `shell`."""
        shell.write_text(_REMOTE_SHELL.format(subnet=_SUBNET, name=self.name))
        shell.chmod(0o755)
        names = [f"{_SUBNET}.254 {os.uname().nodename}"]
        names += [f"{host} host{number}" for number, host in enumerate(self.hosts, 1)]
        for rank in range(self.ranks):  # what `ip netns exec` shows as /etc/hosts
            place = self._names(rank)
            place.mkdir(parents=True)
            (place / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        subnet = f"{_SUBNET}.0/24"
        return {
            **self.environment(),
            "PRTE_MCA_plm_ssh_agent": str(shell),
            "PRTE_MCA_prte_if_include": subnet,
            "OMPI_MCA_plm_rsh_agent": str(shell),
            "OMPI_MCA_oob_tcp_if_include": subnet,
            # Otherwise MPICH notices that all hosts are one machine, and shares memory.
            "UCX_TLS": "tcp,self",
            "HYDRA_LAUNCHER": "ssh",
            "HYDRA_LAUNCHER_EXEC": str(shell),
        }

    def bytes_sent(self, rank: int) -> int:
        """Bytes that `rank` has sent through its link so far."""
        shown = ["tc", "-s", "-j", "-n", f"{self.name}-{rank}", "qdisc", "show", "dev", "eth0"]
        (limit,) = json.loads(_call(shown))
        return int(limit["bytes"])

    def _make(self) -> None:
        bridge = self._interface("b")
        _ip(f"link add {bridge} type bridge")
        _ip(f"addr add {_SUBNET}.254/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        for rank in range(self.ranks):
            space, port = f"{self.name}-{rank}", self._interface(f"p{rank}")
            _ip(f"netns add {space}")
            _ip(f"link add {port} type veth peer name eth0 netns {space}")
            _ip(f"link set {port} master {bridge} up")
            _ip(f"-n {space} addr add {_SUBNET}.{rank + 1}/24 dev eth0")
            for interface in ("eth0", "lo"):
                _ip(f"-n {space} link set {interface} up")
            self._limit(["tc", "-n", space], "eth0")
            self._limit(["tc"], port)

    def _limit(self, tc: list[str], interface: str) -> None:
        burst = max(16_000, int(bits_per_second(self.bandwidth) / 8 * _BURST_SECONDS))
        limit = f"rate {self.bandwidth} burst {burst} latency {_QUEUE_SECONDS * 1000:g}ms"
        _call([*tc, *shlex.split(f"qdisc add dev {interface} root tbf {limit}")])

    def _names(self, rank: int) -> Path:
        return Path(f"/etc/netns/{self.name}-{rank}")

    def _interface(self, suffix: str) -> str:
        return f"sw{os.getpid() % 100_000}{suffix}"  # Linux allows 15 characters

    def _remove(self) -> None:
        ports = [self._interface(f"p{rank}") for rank in range(self.ranks)]
        commands = [f"netns del {self.name}-{rank}" for rank in range(self.ranks)]
        commands += [f"link del {interface}" for interface in [*ports, self._interface("b")]]
        for command in commands:  # after a failure only some of these exist
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip(command)
        for rank in range(self.ranks):
            shutil.rmtree(self._names(rank), ignore_errors=True)


def bits_per_second(bandwidth: str) -> float:
    """The number that "100mbit" or "1.5gbit" stands for.

    Raises:
      ValueError: it has another unit.
    """
    units = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
    for unit, factor in units.items():
        if bandwidth.endswith(unit):
            return float(bandwidth.removesuffix(unit)) * factor
    raise ValueError(f"{bandwidth} must end with {', '.join(units)}")


def _ip(arguments: str) -> None:
    _call(["ip", *shlex.split(arguments)])


def _call(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
