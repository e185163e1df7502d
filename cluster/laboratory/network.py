"""A network for the nodes of a laboratory, with links that can be cut, slowed down and restored.

Every node has a network namespace with an interface of its own; a bridge in the head's namespace
connects them. The namespaces have no names: a process in each keeps it, and ends when this process
does, however that ends. The kernel then removes namespaces, links and bridge, so nothing is left
for the next laboratory, and several can use the same addresses at the same time.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import Literal

SUBNET = "10.0.0"
HEAD_HOST = f"{SUBNET}.1"
BRIDGE, INTERFACE = "bridge", "eth0"
Direction = Literal["to", "from"]
TO: Direction = "to"
FROM: Direction = "from"
BOTH: tuple[Direction, ...] = (TO, FROM)
LONGEST_QUEUE_SECONDS = 5
IMPATIENT = ("env", "RES_OPTIONS=timeout:1 attempts:1")
"""No name server can be reached, and PyTorch looks the other workers' names up when they connect:
with the usual patience every new group would take 10 s longer.
"""
PROGRAMS = ("unshare", "nsenter", "ip", "tc")


class NoNetwork(RuntimeError):
    """Networks cannot be made here; the message says why."""


@dataclass
class Network:
    """The processes that keep the namespaces, by the names of the nodes."""

    keepers: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _head: str = ""

    def add(self, name: str, host: str) -> None:
        """Connect a node with this address; the first one is the head's.

        Raises:
            NoNetwork: When it cannot be made here.
        """
        is_head = not self.keepers
        self.keepers[name] = _keep_namespace()
        if is_head:
            self._head = name
            self._run(name, "ip", "link", "add", "name", BRIDGE, "type", "bridge")
            own = BRIDGE
        else:
            beyond = str(self.keepers[name].pid)
            pair = ("type", "veth", "peer", "name", INTERFACE, "netns", beyond)
            self._run(self._head, "ip", "link", "add", "name", name, *pair)
            self._run(self._head, "ip", "link", "set", "dev", name, "master", BRIDGE, "up")
            own = INTERFACE
        self._run(name, "ip", "address", "add", f"{host}/24", "dev", own)
        for interface in ("lo", own):
            self._run(name, "ip", "link", "set", "dev", interface, "up")
        # To learn its address, a process looks at the way to some host of the internet.
        self._run(name, "ip", "route", "add", "default", "via", HEAD_HOST, "dev", own)

    def enter(self, name: str) -> list[str]:
        """The words before a command that is to run on this node."""
        return ["nsenter", f"--net=/proc/{self.keepers[name].pid}/ns/net", *IMPATIENT]

    def cut(self, name: str, directions: tuple[Direction, ...] = BOTH) -> None:
        """Drop all packets to a node, from it, or both; nobody is told, as by a broken switch."""
        self._shape(name, directions, "blackhole")

    def slow_down(self, name: str, kilobits: int) -> None:
        """Let only so many kilobits a second through, in either direction; the others queue up."""
        # The bucket must hold a packet of the largest size.
        bucket = ("burst", "2kb", "latency", f"{LONGEST_QUEUE_SECONDS}s")
        self._shape(name, BOTH, "tbf", "rate", f"{kilobits}kbit", *bucket)

    def restore(self, name: str) -> None:
        """End what `cut` and `slow_down` did to this node's link."""
        for node, device in self._ends(name, BOTH):
            subprocess.run(
                [*self.enter(node), "tc", "qdisc", "delete", "dev", device, "root"],
                stderr=subprocess.DEVNULL,
                check=False,
            )

    def delayed(self, name: str) -> int:
        """How often a packet had to wait, since `slow_down`, in either direction of a link."""
        total = 0
        for node, device in self._ends(name, BOTH):
            words = ("tc", "-json", "-statistics", "qdisc", "show", "dev", device)
            total += sum(each["overlimits"] for each in json.loads(self._run(node, *words)))
        return total

    def close(self) -> None:
        """Remove all of it, once no process is left on the nodes."""
        for keeper in self.keepers.values():
            keeper.communicate()
        self.keepers.clear()

    def _shape(self, name: str, directions: tuple[Direction, ...], *words: str) -> None:
        for node, device in self._ends(name, directions):
            self._run(node, "tc", "qdisc", "replace", "dev", device, "root", *words)

    def _ends(self, name: str, directions: tuple[Direction, ...]) -> list[tuple[str, str]]:
        """The sending ends of a node's link, as a node and its interface."""
        ends = {TO: (self._head, name), FROM: (name, INTERFACE)}
        return [ends[direction] for direction in directions]

    def _run(self, name: str, *words: str) -> str:
        done = subprocess.run(
            [*self.enter(name), *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NoNetwork(f"'{' '.join(words)}' failed: {done.stderr.strip()}")
        return done.stdout


def obstacle() -> str | None:
    """Why no network can be made on this machine, or its links not changed; None if all works."""
    network = Network()
    try:
        network.add("head", HEAD_HOST)
        network.add("node", f"{SUBNET}.2")
        network.slow_down("node", kilobits=1000)
        network.cut("node")
    except NoNetwork as error:
        return str(error)
    finally:
        network.close()
    return None


def _keep_namespace() -> "subprocess.Popen[bytes]":
    """A process in a new network namespace; it ends when its input is closed."""
    needed = [program for program in PROGRAMS if shutil.which(program) is None]
    if needed:
        raise NoNetwork(f"a network of this laboratory needs {', '.join(needed)} on this machine")
    keeper = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Ctrl-C is for this process, which closes the network when the nodes have ended.
        start_new_session=True,
    )
    assert keeper.stdout is not None
    said = keeper.stdout.readline().decode().strip()
    if said != "ready":
        keeper.wait()
        raise NoNetwork(f"this user cannot make network namespaces ({said}): run it as root")
    return keeper
