"""A Ray cluster of several nodes on this machine, whose processes can be killed or suspended.

Every node is a `ray start` of its own: a raylet with its own loopback address.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.laboratory.network import HEAD_HOST, SUBNET, Network
from cluster.laboratory.processes import (
    DEADLINE_SECONDS,
    LABORATORY,
    ProcessTable,
    wait_until,
)
from cluster.resilience.fault_injection import NODE

RAYLET = "raylet/raylet"
STARTED = "Ray runtime started"
START_SECONDS = 300.0
LOOPBACK = "127.0.0.1"
TRIES = 3
# The head has no CPU and so no workers: faults of the other nodes never hit the driver's node.
HEAD = "head"


@dataclass(frozen=True)
class Node:
    """A node by its name; `host` is its address, or None for that of the machine."""

    name: str
    host: str | None


@dataclass
class Laboratory:
    """The cluster. `id` marks its processes, `folder` has Ray's files.

    With a `network`, nodes are on it instead of on the loopback interface.
    """

    folder: Path
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    nodes: list[Node] = field(default_factory=list)
    port: int = 0
    network: Network | None = None
    _numbered: int = 0

    def __post_init__(self) -> None:
        self.table = ProcessTable(self.id)

    @property
    def address(self) -> str:
        return f"{LOOPBACK if self.network is None else HEAD_HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of all processes here: Ray's token is the laboratory's own."""
        mine = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        mine |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
        # By default Ray gives up after 30 s, and its workers have less priority than all else: too
        # little for several nodes on a busy machine.
        mine |= {"RAY_raylet_start_wait_time_s": f"{START_SECONDS:.0f}", "RAY_worker_niceness": "0"}
        return mine | {"RAY_AUTH_TOKEN": self.id * 4, LABORATORY: self.id}

    def start_head(self) -> None:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            self.port = probe.getsockname()[1]
        own: tuple[str, ...] = ("--head", f"--port={self.port}", "--num-cpus=0")
        head = Node(HEAD, None if self.network is None else HEAD_HOST)
        if self.network is not None:
            self.network.add(HEAD, HEAD_HOST)
            own += (f"--node-ip-address={HEAD_HOST}",)
        self._start_all({head: (*own, "--include-dashboard=false")})

    def have(self, count: int) -> None:
        """Start or end nodes until there are `count` beside the head, with one CPU each."""
        whole = [node for node in self.nodes if self.is_whole(node)]
        for node in [node for node in self.nodes if node not in whole[:count]]:
            self.end(node)
        self.add(count - len(self.nodes))

    def add(self, count: int, cpus: int = 1) -> None:
        """Add nodes with so many CPUs each."""
        numbers = range(self._numbered + 2, self._numbered + count + 2)
        self._numbered += count
        subnet = "127.0.0" if self.network is None else SUBNET
        new = [Node(f"node-{number}", f"{subnet}.{number}") for number in numbers]
        joining = (f"--address={self.address}", f"--num-cpus={cpus}")
        for node in new:
            if self.network is not None and node.host is not None:
                self.network.add(node.name, node.host)
        self._start_all({node: (*joining, f"--node-ip-address={node.host}") for node in new})
        self.nodes += new

    def drive(
        self,
        *words: str,
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a driver of this cluster on the head's node, as `python -m ...`.

        What it prints is added to the file `output`, if one is given.
        """
        with contextlib.ExitStack() as stack:
            printed = None if output is None else stack.enter_context(output.open("ab"))
            driver = subprocess.Popen(
                [*self._enter(HEAD), sys.executable, "-m", *words],
                env={**self.environment, **(environment or {}), NODE: "driver"},
                stdout=printed,
                stderr=None if printed is None else subprocess.STDOUT,
                start_new_session=True,
            )
        self.table.sessions[driver.pid] = "driver"
        return driver

    def processes(self, node: str | None = None, having: str = "") -> list[psutil.Process]:
        """The processes of a node, or of all, whose command line contains `having`."""
        return self.table.find(node, having)

    def raylet(self, node: Node) -> psutil.Process:
        [raylet] = self.processes(node.name, RAYLET)
        return raylet

    def agents(self, node: str | None = None) -> list[psutil.Process]:
        return self.processes(node, "PlacedAgent")

    def children(self, node: str | None = None) -> list[psutil.Process]:
        return self.processes(node, "cluster.workers.child")

    def at_work(self) -> list[Node]:
        """The nodes that have a worker, by its rank."""
        at_work = [node for node in self.nodes if self.children(node.name)]
        return sorted(at_work, key=lambda node: node.host or "")

    def preempt(self, node: Node) -> None:
        """Announce to a node that it will go away, as Kubernetes does: Ray then drains the node."""
        [starter] = self.processes(node.name, "--block")
        starter.terminate()

    def freeze(self, node: Node) -> None:
        """Suspend all processes of a node, like a machine that hangs."""
        for process in self.processes(node.name):
            process.send_signal(signal.SIGSTOP)

    def thaw(self, node: Node) -> None:
        """Let all processes of a node go on."""
        for process in self.processes(node.name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def end(self, node: Node) -> None:
        """Remove a node for good."""
        self.kill(node.name)
        self.nodes.remove(node)

    def kill(self, name: str | None = None) -> None:
        """Kill every process of a node, or of all nodes, even suspended ones."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while left := self.processes(name):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5.0)
            if time.monotonic() > deadline:
                raise TimeoutError(f"cannot be killed in {DEADLINE_SECONDS:.0f} s: {left}")

    def is_whole(self, node: Node) -> bool:
        """Whether its raylet runs."""
        states = [raylet.status() for raylet in self.processes(node.name, RAYLET)]
        return len(states) == 1 and states != [psutil.STATUS_STOPPED]

    def _start(self, node: Node, *words: str) -> subprocess.Popen[bytes]:
        few = ("--object-store-memory=80000000", "--disable-usage-stats", "--block")
        folder = f"--temp-dir={self.folder / node.name}"
        ports = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
        ray = str(Path(sys.executable).with_name("ray"))
        with self._printed(node).open("w") as printed:
            starting = subprocess.Popen(
                [*self._enter(node.name), ray, "start", *words, folder, *few, *ports],
                env=self.environment | {NODE: node.name},
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.table.sessions[starting.pid] = node.name
        return starting

    def _enter(self, name: str) -> list[str]:
        """The words before a command that make it run on a node's network."""
        return [] if self.network is None else self.network.enter(name)

    def _start_all(self, options: Mapping[Node, Sequence[str]]) -> None:
        """Start nodes with these options of `ray start`, at the same time.

        On a busy machine Ray may give up after half a minute; then it is tried again.

        Raises:
            RuntimeError: When a node does not start, with what `ray start` printed.
        """
        starting = {node: self._start(node, *words) for node, words in options.items()}
        for node, process in starting.items():
            tries = 1
            while not self._has_started(node, process):
                if tries == TRIES:
                    printed = self._printed(node).read_text()
                    raise RuntimeError(f"{node.name} does not start: {printed}")
                self.kill(node.name)
                process, tries = self._start(node, *options[node]), tries + 1

    def _has_started(self, node: Node, starting: subprocess.Popen[bytes]) -> bool:
        """Wait until a node has started, or failed to."""
        printed = self._printed(node)
        wait_until(
            lambda: STARTED in printed.read_text() or starting.poll() is not None,
            f"{node.name} starts",
            START_SECONDS,
        )
        return starting.poll() is None

    def _printed(self, node: Node) -> Path:
        return self.folder / f"{node.name}.txt"


@contextlib.contextmanager
def laboratory(network: Network | None = None) -> Iterator[Laboratory]:
    """A head without workers; at the end, everything that was started is killed."""
    # In /tmp, because the paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp", ignore_cleanup_errors=True) as path:
        lab = Laboratory(Path(path), network=network)
        try:
            lab.start_head()
            yield lab
        finally:
            lab.kill()
            if network is not None:
                network.close()
