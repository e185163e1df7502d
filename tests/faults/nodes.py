"""A Ray cluster of several nodes on this machine, and its processes, to be ended as faults go.

Every node is a `ray start` of its own: a raylet with its own address of the loopback network. The
node of a process is known by its session, or by a variable in its environment if it has a session
of its own, also when its parents are gone. (Ray's workers write their titles over their
environment.)
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LABORATORY, NODE = "CONVNEXTV2_LABORATORY", "CONVNEXTV2_NODE"
RAYLET = "raylet/raylet"
STARTED = "Ray runtime started"
DEADLINE_SECONDS = 120.0
# The head has no CPU: whatever befalls the other nodes, the driver's own stays.
HEAD = "head"


@dataclass(frozen=True)
class Node:
    """A node by its name; `host` is its address, None that of the machine."""

    name: str
    host: str | None


@dataclass
class Laboratory:
    """The cluster. `id` marks its processes, `folder` has Ray's files."""

    folder: Path
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    nodes: list[Node] = field(default_factory=list)
    port: int = 0
    sessions: dict[int, str] = field(default_factory=dict)
    _numbered: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of everything here: Ray's token is the laboratory's own, not the machine's."""
        mine = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
        mine |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
        return mine | {"RAY_AUTH_TOKEN": self.id * 4, LABORATORY: self.id}

    def start_head(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        own = ("--head", f"--port={self.port}", "--num-cpus=0")
        head = Node(HEAD, None)
        self._await_start(head, self._start(head, *own, "--include-dashboard=false"))

    def have(self, count: int) -> None:
        """Exactly so many nodes beside the head, of one CPU; they are there when this returns."""
        whole = [node for node in self.nodes if self._is_whole(node)]
        for node in [node for node in self.nodes if node not in whole[:count]]:
            self.end(node)
        self.add(count - len(self.nodes))

    def add(self, count: int) -> None:
        """More nodes."""
        numbers = range(self._numbered + 2, self._numbered + count + 2)
        self._numbered += count
        new = [Node(f"node-{number}", f"127.0.0.{number}") for number in numbers]
        joining = (f"--address={self.address}", "--num-cpus=1")
        starting = [self._start(node, *joining, f"--node-ip-address={node.host}") for node in new]
        for node, process in zip(new, starting, strict=True):
            self._await_start(node, process)
        self.nodes += new

    def drive(self, *words: str) -> subprocess.Popen[bytes]:
        """A driver of this cluster: `python -m ...` on the head's node."""
        environment = self.environment | {NODE: "driver"}
        driver = subprocess.Popen(
            [sys.executable, "-m", *words], env=environment, start_new_session=True
        )
        self.sessions[driver.pid] = "driver"
        return driver

    def processes(self, node: str | None = None, having: str = "") -> list[psutil.Process]:
        """Those of a node, or of all, whose command line has these words."""
        return [
            process
            for process in psutil.process_iter()
            if (name := self._node_of(process)) is not None
            and node in (None, name)
            and having in _command(process)
        ]

    def raylet(self, node: Node) -> psutil.Process:
        [raylet] = self.processes(node.name, RAYLET)
        return raylet

    def agents(self, node: str | None = None) -> list[psutil.Process]:
        return self.processes(node, "PlacedAgent")

    def children(self, node: str | None = None) -> list[psutil.Process]:
        return self.processes(node, "cluster.workers.child")

    def at_work(self) -> list[Node]:
        """Nodes that have a worker, in the order of its rank."""
        at_work = [node for node in self.nodes if self.children(node.name)]
        return sorted(at_work, key=lambda node: node.host or "")

    def preempt(self, node: Node) -> None:
        """Tell a node that it is to go, as Kubernetes does: the process that started it drains."""
        [starter] = self.processes(node.name, "--block")
        starter.terminate()

    def freeze(self, node: Node) -> None:
        """Stop all processes of a node, as a machine that hangs would."""
        for process in self.processes(node.name):
            process.send_signal(signal.SIGSTOP)

    def end(self, node: Node) -> None:
        """Take a node away for good."""
        self.kill(node.name)
        self.nodes.remove(node)

    def kill(self, name: str | None = None) -> None:
        """Kill every process of a node, or of all, whatever state it is in."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while left := self.processes(name):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5.0)
            assert time.monotonic() < deadline, left

    def _is_whole(self, node: Node) -> bool:
        states = [raylet.status() for raylet in self.processes(node.name, RAYLET)]
        return len(states) == 1 and states != [psutil.STATUS_STOPPED]

    def _start(self, node: Node, *words: str) -> subprocess.Popen[bytes]:
        few = ("--object-store-memory=80000000", "--disable-usage-stats", "--block")
        folder = f"--temp-dir={self.folder / node.name}"
        ports = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
        with self._printed(node).open("w") as printed:
            starting = subprocess.Popen(
                [Path(sys.executable).with_name("ray"), "start", *words, folder, *few, *ports],
                env=self.environment | {NODE: node.name},
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.sessions[starting.pid] = node.name
        return starting

    def _await_start(self, node: Node, starting: subprocess.Popen[bytes]) -> None:
        printed = self._printed(node)
        wait_until(lambda: STARTED in printed.read_text() or starting.poll(), f"{node} starts")
        assert starting.poll() is None, printed.read_text()

    def _printed(self, node: Node) -> Path:
        return self.folder / f"{node.name}.txt"

    def _node_of(self, process: psutil.Process) -> str | None:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            if (name := self.sessions.get(os.getsid(process.pid))) is not None:
                return name
            environment = process.environ()
        except (psutil.Error, ProcessLookupError):
            return None
        return environment.get(NODE) if environment.get(LABORATORY) == self.id else None


@contextlib.contextmanager
def laboratory() -> Iterator[Laboratory]:
    """A head without workers; all that was started is ended."""
    # Sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp", ignore_cleanup_errors=True) as path:
        lab = Laboratory(Path(path))
        try:
            lab.start_head()
            yield lab
        finally:
            lab.kill()


def wait_until(true: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for: {what}"
        time.sleep(0.1)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
