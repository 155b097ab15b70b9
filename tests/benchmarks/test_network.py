"""Links of limited bandwidth, made by the kernel."""

import json
import os
import subprocess
import sys

import pytest

from testbed.network import Network, Unavailable, bits_per_second


@pytest.fixture
def network():
    network = Network(2, "20mbit")
    try:
        network.__enter__()
    except (
        Unavailable
    ) as reason:  # without permission to create namespaces there is nothing to test
        pytest.skip(str(reason))
    yield network
    network.__exit__(None, None, None)


SEND = """
import os, socket, sys
if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
    with socket.create_server(("10.77.0.1", 5000)) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
        print(sum(map(len, iter(lambda: connection.recv(65536), b""))))
else:
    with socket.create_connection(("10.77.0.1", 5000), timeout=30) as connection:
        connection.sendall(bytes(500_000))
"""


def test_all_traffic_between_ranks_passes_the_bandwidth_limit(network):
    def start(rank):
        command = network.enter([sys.executable, "-c", SEND])
        environment = os.environ | {"OMPI_COMM_WORLD_RANK": str(rank)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    receiver = start(0)
    assert receiver.stdout.readline() == "ready\n"
    start(1).wait(30)
    assert receiver.communicate(timeout=30)[0] == "500000\n"
    shown = ["tc", "-s", "-j", "-n", f"{network.name}-1", "qdisc", "show", "dev", "eth0"]
    (limit,) = json.loads(subprocess.run(shown, capture_output=True, check=True).stdout)
    assert limit["kind"] == "tbf"
    assert limit["bytes"] > 500_000
    assert limit["overlimits"] > 0


def test_no_namespace_is_left_at_the_end(network):
    def namespaces():
        return subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout

    assert f"{network.name}-1" in namespaces()
    network.__exit__(None, None, None)
    assert network.name not in namespaces()


def test_a_machine_without_ip_and_tc_is_unavailable(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(Unavailable, match="--bandwidth=10mbit needs Linux, ip and tc"),
        Network(2, "10mbit"),
    ):
        pass


def test_bandwidths_are_parsed():
    assert bits_per_second("100mbit") == 1e8
    assert bits_per_second("1.5gbit") == 1.5e9
    with pytest.raises(ValueError, match="100 must end with kbit, mbit, gbit"):
        bits_per_second("100")
