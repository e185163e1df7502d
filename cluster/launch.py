"""Ray: connecting to a cluster, or starting one on this machine, and running worker groups on it.

This and `cluster.tasks` are the only files that import Ray. A worker group runs one function on
every worker inside a ready process group; when a worker dies, Ray ends the group and enters the
function again on a new one. What to resume from is the function's business (`cluster.checkpoint`).
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cluster.placement import ClusterError, Placement, check_answers
from cluster.ray_start import reason, signals_kept, start_with_retry
from cluster.tasks import run_tasks

__all__ = ["Cluster", "ClusterError", "Placement"]

POLL_SECONDS = 0.25
LEAK_SECONDS = 5.0
PROCESS_GROUP_TIMEOUT_SECONDS = 600

Job = TypeVar("Job")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Cluster:
    """A connection to Ray for the length of a `with` block; leaving it ends what it started."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    def __enter__(self) -> Self:
        import ray

        address = self.placement.address or os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's default of 15 lets every other process of the machine starve the training.
        os.environ.setdefault("RAY_worker_niceness", "0")
        common: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "runtime_env": {"env_vars": self.placement.environment},
        }
        with signals_kept():
            if address:
                self._connect(address, common)
            else:
                own = self.placement.own_cluster
                start_with_retry(
                    lambda: ray.init(address="local", **common, **own), give_up=ray.shutdown
                )
        try:
            self._await_resources(address or "this machine")
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import ray

        ray.shutdown()

    def run(
        self,
        work: Callable[[Job], None],
        job: Job,
        *,
        name: str,
        storage: Path,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Run `work(job)` on every worker until it returns on all of them.

        `work` is a function of a module, and `job` is pickled on its way. `storage` is a folder all
        workers share. `while_waiting` is called a few times a second in this thread, so that
        Ctrl-C arrives here and not in Ray's handler.

        Raises:
            ClusterError: When the group failed more often than allowed.
        """
        outcome: list[BaseException] = []
        waiter = threading.Thread(
            target=self._fit, args=(work, job, name, storage, outcome), daemon=True
        )
        waiter.start()
        looked = time.monotonic()
        while waiter.is_alive():
            while_waiting()
            if time.monotonic() > looked + LEAK_SECONDS:
                _remove_leaked_placement_groups()
                looked = time.monotonic()
            waiter.join(POLL_SECONDS)
        while_waiting()
        if outcome:
            raise ClusterError.of_group(outcome[0]) from outcome[0]

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> Iterator[Result]:
        """Call `function` on every item, one CPU each, and yield results as they come.

        As many run at a time as the placement has CPUs. An item whose process dies is tried once
        more. `while_waiting` is called a few times a second.

        Raises:
            ClusterError: When a process died twice on the same item (out of memory?).
            BaseException: What `function` raised, as it was.
        """
        at_a_time = int(self.placement.resources["CPU"])
        return run_tasks(function, items, at_a_time=at_a_time, while_waiting=while_waiting)

    def _connect(self, address: str, common: dict[str, Any]) -> None:
        import ray

        try:
            check_answers(address)
            ray.init(address=address, **common)
        except Exception as error:  # Ray raises many kinds, plain ones too.
            where = f"the Ray cluster at {address}"
            raise ClusterError(f"cannot connect to {where}: {reason(error)}") from error

    def _fit(
        self,
        work: Callable[[Job], None],
        job: Job,
        name: str,
        storage: Path,
        outcome: list[BaseException],
    ) -> None:
        import ray
        from ray.exceptions import RayActorError

        for chances in range(self.placement.max_failures, -1, -1):
            try:
                self._fit_once(work, job, name, storage)
                return
            except BaseException as error:
                # Ray restarts a group when a worker dies, but not while the group is starting.
                died = isinstance(getattr(error, "controller_failure", None), RayActorError)
                if not (died and chances and ray.is_initialized()):
                    outcome.append(error)
                    return

    def _fit_once(self, work: Callable[[Job], None], job: Job, name: str, storage: Path) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        def enter(config: dict[str, Job]) -> None:  # Ray hands over nothing but a dictionary.
            work(config["job"])

        # A fresh name: Ray keeps state under it, and resuming is our own matter.
        name = f"{name}-{time.time_ns():x}"
        try:
            TorchTrainer(
                enter,
                train_loop_config={"job": job},
                torch_config=TorchConfig(timeout_s=PROCESS_GROUP_TIMEOUT_SECONDS),
                scaling_config=ScalingConfig(
                    num_workers=self.placement.num_workers,
                    use_gpu=self.placement.use_gpu,
                    resources_per_worker=self.placement.worker_resources,
                ),
                run_config=RunConfig(
                    name=name,
                    storage_path=str(storage.resolve()),
                    failure_config=FailureConfig(max_failures=self.placement.max_failures),
                ),
            ).fit()
        finally:
            shutil.rmtree(storage / name, ignore_errors=True)

    def _await_resources(self, where: str) -> None:
        """Wait until the cluster has room for the group; a full one would leave it pending."""
        import ray

        deadline = time.monotonic() + self.placement.start_timeout_seconds
        while True:
            free = ray.available_resources()
            short = {k: v for k, v in self.placement.resources.items() if free.get(k, 0) < v}
            if not short:
                return
            if time.monotonic() > deadline:
                lacking = ", ".join(
                    f"{v:g} {k} (free: {free.get(k, 0):g})" for k, v in short.items()
                )
                raise ClusterError(
                    f"the Ray cluster at {where} has no room: {self.placement.num_workers} workers "
                    f"need {lacking}. Is another job using it? Lower cluster.num_workers, or wait."
                )
            time.sleep(POLL_SECONDS)


def _remove_leaked_placement_groups() -> None:
    """Remove the placement groups of worker groups that died while they were starting.

    Ray 2.60 leaves them behind, and the next group would wait for their resources for ever. A job
    has one worker group at a time, so when one is pending, those of all others are leaks.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table

    job = ray.get_runtime_context().get_job_id()
    states = {k: v["state"] for k, v in placement_group_table().items() if k.endswith(job)}
    if "PENDING" in states.values():
        for key, state in states.items():
            if state not in {"PENDING", "REMOVED"}:
                group = PlacementGroup(ray.PlacementGroupID.from_hex(key))
                ray.util.remove_placement_group(group)
