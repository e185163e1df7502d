"""What the conductor, its agents and their children tell each other; plain data, no libraries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

How = Literal["done", "stopped", "raised", "killed"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a child is to do: its place in a process group, and the job as it was pickled.

    Attributes:
        generation: Counts the groups of a run; a child of an older one has nothing to say.
        address: `host:port` where rank 0 opens the group's store.
        devices: CUDA_VISIBLE_DEVICES of all workers on the node, or "" on CPUs. They see each
            other's GPUs, which NCCL needs for copies between them.
        job: A pickled (function, argument). Agents do not open it, so they need not import it.
    """

    generation: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    address: str
    devices: str
    use_gpu: bool
    job: bytes

    @classmethod
    def for_group(
        cls, sites: Sequence["Site"], port: int, generation: int, job: bytes, *, use_gpu: bool
    ) -> list["Order"]:
        """One order for every worker, by rank; the workers of a node stand side by side."""
        nodes = list(dict.fromkeys(site.node for site in sites))
        orders = []
        for rank, site in enumerate(sites):
            beside = [each for each in sites if each.node == site.node]
            orders.append(
                cls(
                    generation=generation,
                    rank=rank,
                    world_size=len(sites),
                    local_rank=sum(each.node == site.node for each in sites[:rank]),
                    local_world_size=len(beside),
                    node_rank=nodes.index(site.node),
                    address=f"{sites[0].host}:{port}",
                    devices=",".join(each.devices for each in beside),
                    use_gpu=use_gpu,
                    job=job,
                )
            )
        return orders


@dataclass(frozen=True, kw_only=True)
class Beat:
    """Where a child is.

    Attributes:
        phase: What it does, as its stopwatch names it.
        seconds: For how long it has done it.
        usual: How long this phase took so far when it was longest (s); 0 the first time.
        step: Optimizer steps done.
        passes: Forward and backward passes done since.
        began: The step that this group went on from; -1 before it knows.
        saved: Step of the newest checkpoint that it has published; -1 for none.
    """

    phase: str = "imports"
    seconds: float = 0.0
    usual: float = 0.0
    step: int = -1
    passes: int = 0
    began: int = -1
    saved: int = -1


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended.

    Attributes:
        how: "done" when the function returned, "stopped" when it left because it was asked to.
        error: Type and message of what was raised, or the signal that killed it.
        trace: The traceback of what was raised.
        of_group: Whether the error is that of a collective: another worker's end, seen from here.
        diverged: Whether weights were found that differ from the other workers'.
        final: Whether another group would fare no better.
        memory: Whether the kernel killed it for want of memory.
        ago: Seconds since.
    """

    how: How
    error: str = ""
    trace: str = ""
    of_group: bool = False
    diverged: bool = False
    final: bool = False
    memory: bool = False
    ago: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Status:
    """What an agent knows of its child.

    Attributes:
        generation: The child's.
        suspended: Whether the child is stopped by a signal (SIGSTOP).
        spare: Whether a second child stands by with everything imported.
        milestones: Seconds from the order to what the child had ready since, in order.
    """

    generation: int
    beat: Beat = Beat()
    ended: Ended | None = None
    suspended: bool = False
    spare: bool = False
    milestones: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where an agent is.

    Attributes:
        node: Ray's id of the node.
        host: Its address, for the other workers.
        pid: Of the agent.
        devices: GPUs that Ray gave it, as CUDA_VISIBLE_DEVICES has them; "" for none.
    """

    node: str
    host: str
    pid: int
    devices: str = ""
