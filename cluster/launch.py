"""Ray: connecting to a cluster, or starting one on this machine, and running worker groups on it.

This and `cluster.ray` are all that imports Ray. A worker group runs one function on every worker
inside a ready process group; Ray places an agent for each, and the conductor
(`cluster.resilience.conductor`) has them begin again when one is lost. What to go on from is the
function's business (`cluster.checkpoint`).
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from cluster.placement import ClusterError, Placement, check_answers
from cluster.ray.access import (
    authentication,
    chosen_mode,
    ensure_token,
    mode_of,
    on_loopback,
    open_warning,
    private_folder,
)
from cluster.ray.agents import RayPlacer
from cluster.ray.start import reason, signals_kept, start_with_retry
from cluster.ray.tasks import run_tasks
from cluster.resilience.conductor import Conductor, GroupFailed
from cluster.resilience.incidents import Incident
from cluster.resilience.roster import Kept, NoRoom
from cluster.resilience.watchdog import Limits

if TYPE_CHECKING:
    from cluster.ray.prometheus import RayMetrics

__all__ = ["Cluster", "ClusterError", "Placement"]

POLL_SECONDS = 0.25

Job = TypeVar("Job")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Cluster:
    """A connection to Ray for the length of a `with` block; leaving it ends what it started.

    The agents of a job stay for the next one, with new processes that have done their imports.

    Attributes:
        warning: What the user should know about the cluster once it is entered; "" for nothing.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.warning = ""
        self._stack = ExitStack()
        self._kept = Kept()
        self._kept_for: object = None

    def __enter__(self) -> Self:
        address = self.placement.address or os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's default of 15 lets every other process of the machine starve the training.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "runtime_env": {"env_vars": self.placement.environment},
        }
        with ExitStack() as stack:
            if address and address != "local":
                self._connect(stack, address, options)
            else:
                self._start(stack, options)
                self._refuse_missing_gpus()
            self._await_resources(address or "this machine")
            stack.callback(self.release_workers)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def run(
        self,
        work: Callable[[Job], None],
        job: Job,
        *,
        name: str,
        sizes: Sequence[int] | None = None,
        prepare: Callable[[], None] = lambda: None,
        limits: Limits | None = None,
        while_waiting: Callable[[], None] = lambda: None,
        note: Callable[[Incident], None] = lambda incident: None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Run `work(job)` on every worker until it returns on all of them.

        Args:
            work: A function of a module. What it goes on from after a fault is its own business.
            job: Pickled on its way.
            name: For messages and incidents.
            sizes: How many workers there may be, ascending; all that `placement` allows by default.
            prepare: Called by the workers before there is anything to do: imports and the like.
            limits: When a worker hangs.
            while_waiting: Called a few times a second, in this thread.
            note: Gets every incident, when it happens and when training goes on.
            say: Gets sentences for the screen.

        Raises:
            ClusterError: When the group failed more often than allowed, or found no room.
            KeyboardInterrupt: When it came; the workers have saved and left.
        """
        from ray import cloudpickle

        # Not `prepare`: it only imports in advance, and is another one for every job.
        agents_for = (self.placement.worker_resources, self.placement.warm_spare)
        if agents_for != self._kept_for:
            self.release_workers()
            self._kept_for = agents_for
        conductor = Conductor(
            RayPlacer(self.placement, cloudpickle.dumps((prepare, work)), say),
            sizes or self.placement.sizes,
            stage=name,
            max_failures=self.placement.max_failures,
            start_timeout=self.placement.start_timeout_seconds,
            use_gpu=self.placement.use_gpu,
            limits=limits or Limits(),
            note=note,
            say=say,
            tick=while_waiting,
            kept=self._kept,
        )
        try:
            conductor.run(cloudpickle.dumps((work, job)))
        except (GroupFailed, NoRoom) as error:
            raise ClusterError(str(error)) from error

    def release_workers(self) -> None:
        """End the agents that stand by, so that others can have their CPUs and GPUs."""
        self._kept.dismiss()

    def metrics(self, descriptions: Mapping[str, str], labels: Mapping[str, str]) -> "RayMetrics":
        """Where this process puts what Ray's Prometheus endpoint shows."""
        from cluster.ray.prometheus import RayMetrics

        return RayMetrics(descriptions, labels)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> Iterator[Result]:
        """Call `function` on every item, one CPU each, and yield results as they come.

        As many run at a time as the placement has CPUs. An item whose process dies is tried once
        more. `while_waiting` is called a few times a second. Workers that stand by are released,
        for they hold CPUs.

        Raises:
            ClusterError: When a process died twice on the same item (out of memory?).
            BaseException: What `function` raised, as it was.
        """
        self.release_workers()
        at_a_time = int(self.placement.resources["CPU"])
        return run_tasks(function, items, at_a_time=at_a_time, while_waiting=while_waiting)

    def _start(self, stack: ExitStack, options: dict[str, Any]) -> None:
        """Start a cluster of this machine alone, which nobody else can use."""
        import ray

        own = self.placement.own_cluster | {"_temp_dir": private_folder()}
        mode = chosen_mode() or "token"
        if mode == "token":
            ensure_token()
        stack.enter_context(authentication(mode))
        stack.callback(ray.shutdown)
        with signals_kept(), on_loopback():
            start_with_retry(
                lambda: ray.init(address="local", **options, **own), give_up=ray.shutdown
            )

    def _connect(self, stack: ExitStack, address: str, options: dict[str, Any]) -> None:
        import ray
        from ray._private.services import canonicalize_bootstrap_address_or_die

        try:
            at = canonicalize_bootstrap_address_or_die(address) if address == "auto" else address
            check_answers(at)
            mode, chosen = mode_of(at), chosen_mode()
            stack.enter_context(authentication(mode))
            stack.callback(ray.shutdown)
            with signals_kept():
                ray.init(address=at, **options)
        except Exception as error:  # Ray raises many kinds, plain ones too.
            where = f"the Ray cluster at {address}"
            raise ClusterError(f"cannot connect to {where}: {reason(error)}") from error
        if mode == "disabled" and chosen is None:
            self.warning = open_warning(at)

    def _refuse_missing_gpus(self) -> None:
        """This machine gets no more GPUs, so there is nothing to wait for."""
        import ray

        wanted = int(self.placement.least_resources.get("GPU", 0))
        there = int(ray.cluster_resources().get("GPU", 0))
        if there < wanted:
            fewer = f"cluster.num_workers={there} or " if there else ""
            raise ClusterError(
                f"cluster.use_gpu: a GPU for every worker makes {wanted}, and Ray finds "
                f"{there or 'none'} on this machine (nvidia-smi lists them); "
                f"{fewer}cluster.use_gpu=false would do"
            )

    def _await_resources(self, where: str) -> None:
        """Wait until the cluster has room for the group; a full one would leave it pending."""
        import ray

        deadline = time.monotonic() + self.placement.start_timeout_seconds
        while True:
            free = ray.available_resources()
            short = {k: v for k, v in self.placement.least_resources.items() if free.get(k, 0) < v}
            if not short:
                return
            if time.monotonic() > deadline:
                lacking = ", ".join(
                    f"{v:g} {k} (free: {free.get(k, 0):g})" for k, v in short.items()
                )
                raise ClusterError(
                    f"the Ray cluster at {where} has no room: {self.placement.sizes[0]} workers "
                    f"need {lacking}. Is another job using it? Lower cluster.num_workers, or wait."
                )
            time.sleep(POLL_SECONDS)
