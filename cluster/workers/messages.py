"""The messages between the conductor, its agents and their children: plain data, no libraries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

How = Literal["done", "stopped", "raised", "killed"]
Raised = Literal["error", "node", "divergence", "spike"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a child is to do: its rank in a process group, and the pickled job.

    Attributes:
        generation: Counts the groups of a driver; reports from older ones are ignored.
        host: The address of this worker's node, for the other workers.
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
    host: str
    address: str
    devices: str
    use_gpu: bool
    job: bytes

    @classmethod
    def for_group(
        cls, sites: Sequence["Site"], port: int, generation: int, job: bytes, *, use_gpu: bool
    ) -> list["Order"]:
        """One order for every worker, by rank; in `sites` the workers of a node are adjacent."""
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
                    host=site.host,
                    address=f"{sites[0].host}:{port}",
                    devices=",".join(each.devices for each in beside),
                    use_gpu=use_gpu,
                    job=job,
                )
            )
        return orders


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The progress of a child.

    Attributes:
        phase: What it is doing, by the name that its stopwatch uses.
        seconds: How long ago this phase began, or the last step or pass in it ended.
        usual: The longest that this phase has taken before (s); 0 the first time.
        step: Optimizer steps done.
        passes: Forward and backward passes, or batches of an evaluation, done since that step.
        began: The step that this group started from; -1 until it is known.
        saved: Step of the newest checkpoint that it has published; -1 if there is none.
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
        how: "done" when the function returned, "stopped" when it exited on request.
        error: Type and message of what was raised, or the signal that killed it.
        trace: The traceback of what was raised.
        cause: What was raised: "node" tells of an unusable machine, "divergence" and "spike" are
            raised by all workers together (`cluster.workers.current`), else it is an "error".
        of_group: Whether a collective failed because another worker died, or another worker is
            named as the cause.
        final: Whether a new group would fail in the same way.
        memory: Whether the kernel killed it because memory ran out.
        ago: Seconds since it ended.
    """

    how: How
    error: str = ""
    trace: str = ""
    cause: Raised = "error"
    of_group: bool = False
    final: bool = False
    memory: bool = False
    ago: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Status:
    """What an agent knows of its child.

    Attributes:
        generation: That of the child's group.
        suspended: Whether the child is stopped by a signal (SIGSTOP).
        spare: Whether a second child is ready, with everything imported.
        milestones: Seconds from the order until each milestone, in the order reached.
    """

    generation: int
    beat: Beat = Beat()
    ended: Ended | None = None
    suspended: bool = False
    spare: bool = False
    milestones: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Site:
    """The place of an agent.

    Attributes:
        node: Ray's id of the node.
        host: The address of the node, for the other workers.
        pid: The agent's process id.
        devices: The GPUs that Ray assigned, as in CUDA_VISIBLE_DEVICES; "" for none.
    """

    node: str
    host: str
    pid: int
    devices: str = ""
