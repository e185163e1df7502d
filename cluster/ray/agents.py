"""Agents on Ray: an actor for every worker, which asks for the worker's CPUs and GPU."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from cluster.placement import ClusterError, Placement, check_answers, fewest_nodes
from cluster.ray.start import reason
from cluster.resilience.crew import AgentLost
from cluster.workers.agent import Agent
from cluster.workers.messages import Order, Site, Status

LEAVING_SECONDS = 1.0
HEAD_SECONDS = 2.0
NODE_ID = "ray.io/node-id"
"""The label that Ray gives every node."""
TOLD_TO_GO = {1, 3, 4}
"""In Ray's NodeDeathInfo: EXPECTED_TERMINATION, AUTOSCALER_DRAIN_PREEMPTED and _IDLE."""
CALLS = 8
"""Calls that an agent answers at the same time: `status` blocks while others are served."""


class PlacedAgent(Agent):
    """An agent that asks Ray for its node, its address and its GPUs."""

    def __init__(self, preparation: bytes, *, keep_spare: bool) -> None:
        import ray

        context = ray.get_runtime_context()
        site = Site(
            node=context.get_node_id(),
            host=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            devices=",".join(context.get_accelerator_ids().get("GPU", [])),
        )
        self._head = context.gcs_address
        super().__init__(site, preparation, keep_spare=keep_spare)

    def is_cut_off(self) -> bool:
        try:
            check_answers(self._head)
        except ClusterError:
            return True
        return False


class RayAgent:
    """The conductor's handle on an agent's actor, which may still be waiting for resources."""

    def __init__(
        self, placement: Placement, preparation: bytes, avoid: frozenset[str], node: str | None
    ) -> None:
        """Request an agent on `node` if it still has room then, or else on any not in `avoid`."""
        import ray

        resources = placement.worker_resources
        anywhere = {NODE_ID: f"!in({','.join(sorted(avoid))})"} if avoid else {}
        self._actor = (
            ray.remote(PlacedAgent)
            .options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                max_concurrency=CALLS,
                label_selector=anywhere if node is None else {NODE_ID: node},
                fallback_strategy=None if node is None else [{"label_selector": anywhere}],
            )
            .remote(preparation, keep_spare=placement.warm_spare)
        )

    def site(self) -> Future[Site]:
        return _answer(self._actor.site.remote())

    def free_port(self) -> Future[int]:
        return _answer(self._actor.free_port.remote())

    def start(self, order: Order) -> Future[None]:
        return _answer(self._actor.start.remote(order))

    def status(self, known: Status | None) -> Future[Status]:
        return _answer(self._actor.status.remote(known))

    def request_stop(self) -> Future[None]:
        return _answer(self._actor.request_stop.remote())

    def stacks(self) -> Future[str]:
        return _answer(self._actor.stacks.remote())

    def clear(self) -> Future[None]:
        return _answer(self._actor.clear.remote())

    def close(self) -> Future[None]:
        return _answer(self._actor.close.remote())

    def dismiss(self) -> None:
        import ray

        ray.kill(self._actor)


class RayPlacer:
    """Places agents on the cluster that this process is connected to."""

    def __init__(
        self,
        placement: Placement,
        preparation: bytes,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._placement, self._preparation, self._say = placement, preparation, say
        self._head_answers = True
        self._leaving: frozenset[str] = frozenset()
        self._looked = float("-inf")

    def place(self, count: int, avoid: frozenset[str]) -> Sequence[RayAgent]:
        import ray
        from ray._private.state import available_resources_per_node

        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - avoid
        free = {
            node: resources
            for node, resources in available_resources_per_node().items()
            if node in alive
        }
        nodes: list[str | None] = [*fewest_nodes(free, self._placement.worker_resources, count)]
        nodes += [None] * (count - len(nodes))
        return [RayAgent(self._placement, self._preparation, avoid, node) for node in nodes]

    def probe(self, node: str) -> Future[None]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=-1)(_do_nothing)
        return _answer(task.options(scheduling_strategy=there).remote())

    def leaving(self) -> frozenset[str]:
        import ray

        if time.monotonic() - self._looked > LEAVING_SECONDS:
            self._look_at_head(ray.get_runtime_context().gcs_address)
            if self._head_answers:
                # Ray has no public call for it; Ray Train's own watcher uses this one.
                self._leaving = frozenset(ray._private.state.state.get_draining_nodes())
            self._looked = time.monotonic()
        return self._leaving

    def _look_at_head(self, address: str) -> None:
        """Say it when the cluster's controller (GCS) is gone: Ray 2.60 waits for it for 60 s, and
        then ends this process with a line in the log alone.
        """
        before = self._head_answers
        try:
            check_answers(address, HEAD_SECONDS)
        except ClusterError:
            self._head_answers = False
        else:
            self._head_answers = True
        if before and not self._head_answers:
            self._say(
                f"the head of the Ray cluster at {address} does not answer. Training goes on, but "
                "after a minute Ray ends this command; given again, it goes on from the last "
                "checkpoint"
            )

    @property
    def usable_nodes(self) -> frozenset[str]:
        import ray

        needed = self._placement.worker_resources
        return frozenset(
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"]
            and all(node["Resources"].get(name, 0) >= needed[name] for name in needed)
        )

    def told_to_go(self, node: str) -> bool:
        import ray

        reasons = {each["NodeID"]: each.get("DeathReason") for each in ray.nodes()}
        return reasons.get(node) in TOLD_TO_GO

    def room(self) -> str:
        import ray

        nodes = sum(node["Alive"] for node in ray.nodes())
        there, free = ray.cluster_resources(), ray.available_resources()
        has = ", ".join(
            f"{there.get(name, 0):g} {name} ({free.get(name, 0):g} free)"
            for name in self._placement.worker_resources
        )
        return f"the cluster has {nodes} node{'s' * (nodes != 1)}, {has}"


def _do_nothing() -> None:
    """What a probe runs."""


def _answer(ref: Any) -> Future[Any]:
    """The future of a call to an actor. Any error from Ray counts as the loss of the agent."""
    from ray.exceptions import OutOfMemoryError

    answer: Future[Any] = Future()

    def take(source: Future[Any]) -> None:
        error = source.exception()
        if error is None:
            answer.set_result(source.result())
        else:
            of_memory = isinstance(error, OutOfMemoryError)
            answers = of_memory or _node_answers(error)
            lost = AgentLost(_in_words(error), of_memory=of_memory, node_answers=answers)
            lost.__cause__ = error
            answer.set_exception(lost)

    ref.future().add_done_callback(take)
    return answer


def _in_words(error: BaseException) -> str:
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    if isinstance(error, ActorUnavailableError):
        return "its agent is out of reach"
    if isinstance(error, ActorDiedError):
        return "its agent's process died" if _node_answers(error) else "its node died"
    return reason(error)


def _node_answers(error: BaseException) -> bool:
    """Whether only an actor's process is gone; its connection was closed by its node then."""
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    if isinstance(error, ActorDiedError):
        return "node has died" not in str(error)
    return isinstance(error, ActorUnavailableError)
