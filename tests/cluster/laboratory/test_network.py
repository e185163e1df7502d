"""The network of a laboratory: links that are cut, slowed down and restored, and what is left."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

import psutil
import pytest

from cluster.laboratory.network import BRIDGE, FROM, HEAD_HOST, TO, Direction, Network, obstacle

FORK = multiprocessing.get_context("fork")
PORT = 7001
SERVE = f"""
import socket
server = socket.create_server(("", {PORT}))
print("ready", flush=True)
while True:
    taken, _ = server.accept()
    taken.sendall(bytes(20000))
    taken.close()
"""
ASK = f"""
import socket, sys
try:
    with socket.create_connection((sys.argv[1], {PORT}), float(sys.argv[2])) as asking:
        while asking.recv(20000):
            pass
except TimeoutError:
    sys.exit("no answer")
"""


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    network.add("head", HEAD_HOST)
    network.add("a", "10.0.0.2")
    network.add("b", "10.0.0.3")
    words = [sys.executable, "-c", SERVE]
    with subprocess.Popen([*network.enter("a"), *words], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield network
        server.kill()
    network.close()


def answers(network: Network, asking: str, seconds: float = 60.0) -> bool:
    """Whether node `a` answers this one."""
    words = [sys.executable, "-c", ASK, "10.0.0.2", str(seconds)]
    done = subprocess.run(
        [*network.enter(asking), *words], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.stderr in ("", "no answer\n")
    return done.returncode == 0


@pytest.mark.parametrize("directions", [(TO, FROM), (TO,), (FROM,)])
def test_a_link_that_is_cut_lets_nothing_through(
    network: Network, directions: tuple[Direction, ...]
) -> None:
    assert answers(network, "head")
    assert answers(network, "b")
    network.cut("a", directions)
    assert not answers(network, "head", seconds=0.5)
    assert not answers(network, "b", seconds=0.5)
    network.restore("a")
    assert answers(network, "b")


def test_a_slow_link_delays_packets(network: Network) -> None:
    network.slow_down("a", kilobits=800)
    assert answers(network, "b")
    assert network.delayed("a") > 0
    assert network.delayed("b") == 0
    network.restore("a")
    assert answers(network, "b")


def make_one(told: Connection) -> None:
    network = Network()
    network.add("head", HEAD_HOST)
    network.add("a", "10.0.0.2")
    told.send([keeper.pid for keeper in network.keepers.values()])
    signal.pause()


def test_a_killed_test_leaves_no_network() -> None:
    here, there = FORK.Pipe()
    process = FORK.Process(target=make_one, args=(there,))
    process.start()
    keepers = [psutil.Process(pid) for pid in here.recv()]
    process.kill()
    process.join()
    gone, _ = psutil.wait_procs(keepers, timeout=60)
    assert len(gone) == 2
    links = json.loads(subprocess.check_output(["ip", "-json", "link"]))
    assert not {BRIDGE, "a"} & {link["ifname"] for link in links}


def refused(told: Connection) -> None:
    os.setuid(65534)
    told.send(obstacle())


def test_a_user_who_may_not_is_told_so() -> None:
    assert obstacle() is None
    here, there = FORK.Pipe()
    process = FORK.Process(target=refused, args=(there,))
    process.start()
    said = here.recv()
    process.join()
    assert said == (
        "this user cannot make network namespaces (unshare: unshare failed: Operation not "
        "permitted): run it as root"
    )
