"""What can befall a run, and what must follow."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.laboratory.network import BOTH, FROM, TO, Direction
from cluster.resilience.faults import Cause


@dataclass(frozen=True, kw_only=True)
class LinkFault:
    """What befalls the link of a node.

    Attributes:
        directions: In which no packet passes any more.
        kilobits: So many pass in a second, in both directions, instead of none.
        seconds: The link is as before after so long; None if it never is.
    """

    directions: tuple[Direction, ...] = BOTH
    kilobits: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of fault.

    Attributes:
        injected: What a worker does, as in `cluster.resilience.fault_injection`; with "ask" it
            only says that the time has come, and the laboratory acts.
        about: What happens, in words.
        cause: That of the incident that must follow; None if training must go on without one.
        local: Whether it needs nodes that the laboratory has started itself.
        loses_node: Whether the cluster has one node fewer afterwards.
        of_node: Whether it concerns a node; the others concern a worker, or neither.
        link: What befalls the node's link, for which nodes need a network of their own.
    """

    injected: str
    about: str
    cause: Cause | None = None
    local: bool = False
    loses_node: bool = False
    of_node: bool = False
    link: LinkFault | None = None

    @property
    def needs(self) -> str:
        """Which nodes it needs, in a word."""
        if self.link is not None:
            return "local, as root"
        return "local" if self.local else "any"


KINDS: Mapping[str, Kind] = {
    "kill worker": Kind(injected="sigkill", about="SIGKILL", cause="killed"),
    "stop worker": Kind(injected="sigstop", about="SIGSTOP", cause="hang"),
    "hang": Kind(injected="hang", about="the worker sleeps forever", cause="hang"),
    "raise": Kind(injected="raise", about="the worker raises an exception", cause="error"),
    "nan": Kind(
        injected="nan",
        about="the worker's loss is NaN in this step, also when it is repeated; the undisturbed "
        "run has the same",
    ),
    "spike": Kind(
        injected="spike",
        about="the loss of this step is 10,000 times as large on the worker; the undisturbed run "
        "leaves out the same steps",
        cause="spike",
    ),
    "flip weight": Kind(
        injected="flip",
        about="a bit of a weight flips, just before the workers compare their weights",
        cause="divergence",
    ),
    "kill agent": Kind(
        injected="agent", about="SIGKILL to the worker's agent, an actor of Ray", cause="node"
    ),
    "kill raylet": Kind(
        injected="ask",
        about="SIGKILL to the raylet of the worker's node",
        cause="node",
        local=True,
        loses_node=True,
        of_node=True,
    ),
    "freeze raylet": Kind(
        injected="ask",
        about="SIGSTOP to the raylet, SIGCONT some seconds later; training must go on",
        local=True,
        of_node=True,
    ),
    "freeze node": Kind(
        injected="ask",
        about="SIGSTOP to every process of the node",
        cause="node",
        local=True,
        loses_node=True,
        of_node=True,
    ),
    "preempt node": Kind(
        injected="ask",
        about="the node is drained, as before a preemption; no step may be lost",
        local=True,
        loses_node=True,
        of_node=True,
    ),
    "cut link": Kind(
        injected="ask",
        about="no packet passes to or from the node any more",
        cause="node",
        local=True,
        loses_node=True,
        of_node=True,
        link=LinkFault(),
    ),
    "cut link to node": Kind(
        injected="ask",
        about="no packet passes to the node any more, those from it do",
        cause="node",
        local=True,
        loses_node=True,
        of_node=True,
        link=LinkFault(directions=(TO,)),
    ),
    "cut link from node": Kind(
        injected="ask",
        about="no packet passes from the node any more, those to it do",
        cause="node",
        local=True,
        loses_node=True,
        of_node=True,
        link=LinkFault(directions=(FROM,)),
    ),
    "cut link for 20 s": Kind(
        injected="ask",
        about="no packet passes to or from the node; later it may work again",
        cause="node",
        local=True,
        of_node=True,
        link=LinkFault(seconds=20.0),
    ),
    "cut link for 2 s": Kind(
        injected="ask",
        about="no packet passes to or from the node; training must go on",
        local=True,
        of_node=True,
        link=LinkFault(seconds=2.0),
    ),
    "slow link": Kind(
        injected="ask",
        about="10 Mbit/s pass to and from the node, for 20 s; training must go on",
        local=True,
        of_node=True,
        link=LinkFault(kilobits=10_000, seconds=20.0),
    ),
    "add node": Kind(injected="ask", about="another node joins", local=True),
    "kill driver": Kind(
        injected="ask", about="SIGKILL to the driver; the same command is given again"
    ),
}
ANYWHERE = tuple(name for name, kind in KINDS.items() if not kind.local)
"""Kinds that work on any cluster."""
