"""What can befall a run, and what must follow."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.resilience.faults import Cause


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
    """

    injected: str
    about: str
    cause: Cause | None = None
    local: bool = False
    loses_node: bool = False
    of_node: bool = False


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
    "add node": Kind(injected="ask", about="another node joins", local=True),
    "kill driver": Kind(
        injected="ask", about="SIGKILL to the driver; the same command is given again"
    ),
}
ANYWHERE = tuple(name for name, kind in KINDS.items() if not kind.local)
"""Kinds that work on any cluster."""
