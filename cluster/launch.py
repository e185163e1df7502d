"""Ray: connecting to a cluster, or starting one on this machine, and running worker groups on it.

The only file that imports Ray. A worker group runs one function on every worker inside a ready
process group; when a worker dies, Ray ends the group and enters the function again on a new one.
What to resume from is the function's business (`cluster.checkpoint`).
"""

import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

POLL_SECONDS = 0.25
CONNECT_SECONDS = 10.0
PROCESS_GROUP_TIMEOUT_SECONDS = 600
# On CPUs freed tensors stay with the process instead of going to the kernel and coming back page by
# page, zeroed: a tenth of a step (docs/performance.md). One arena, because the training function is
# not in the main thread, and the arenas of other threads take no tensor of more than 64 MB.
KEEP_PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824"
    ":glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1"
}


class ClusterError(RuntimeError):
    """The cluster cannot be used, or a worker group failed for good; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a worker group needs.

    `address` names a running cluster ("auto", "host:port"); None starts one on this machine,
    unless the environment has RAY_ADDRESS. `max_failures` bounds how often a group is restarted.
    """

    num_workers: int
    cpus_per_worker: int = 1
    use_gpu: bool = False
    max_failures: int = 3
    address: str | None = None
    dashboard_port: int | None = None
    start_timeout_seconds: float = 300.0

    @property
    def worker_resources(self) -> dict[str, float]:
        gpu = {"GPU": 1.0} if self.use_gpu else {}
        return {"CPU": float(self.cpus_per_worker), **gpu}

    @property
    def resources(self) -> dict[str, float]:
        return {name: value * self.num_workers for name, value in self.worker_resources.items()}


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
            "runtime_env": {"env_vars": self._worker_environment()},
        }
        try:
            with _signals_kept():
                if address:
                    _check_answers(address)
                    ray.init(address=address, **common)
                else:
                    ray.init(address="local", **common, **self._own_cluster())
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"to the Ray cluster at {address}" if address else "a Ray cluster here"
            verb = "connect" if address else "start"
            raise ClusterError(f"cannot {verb} {where}: {error}") from error
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
        work: Callable[[dict[str, Any]], None],
        argument: Any,
        *,
        name: str,
        storage: Path,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Run `work({"job": argument})` on every worker until it returns on all of them.

        `storage` is a folder all workers share. `while_waiting` is called a few times a second
        in this thread, so that Ctrl-C arrives here and not in Ray's handler.

        Raises:
            ClusterError: When the group failed more often than allowed.
        """
        outcome: list[BaseException] = []
        waiter = threading.Thread(
            target=self._fit, args=(work, argument, name, storage, outcome), daemon=True
        )
        waiter.start()
        while waiter.is_alive():
            while_waiting()
            waiter.join(POLL_SECONDS)
        while_waiting()
        if outcome:
            raise ClusterError(_explain(outcome[0])) from outcome[0]

    def _fit(
        self,
        work: Callable[[dict[str, Any]], None],
        argument: Any,
        name: str,
        storage: Path,
        outcome: list[BaseException],
    ) -> None:
        import ray
        from ray.exceptions import RayActorError

        for chances in range(self.placement.max_failures, -1, -1):
            try:
                self._fit_once(work, argument, name, storage)
                return
            except BaseException as error:
                # Ray restarts a group when a worker dies, but not while the group is starting.
                died = isinstance(getattr(error, "controller_failure", None), RayActorError)
                if not (died and chances and ray.is_initialized()):
                    outcome.append(error)
                    return

    def _fit_once(
        self, work: Callable[[dict[str, Any]], None], argument: Any, name: str, storage: Path
    ) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        # A fresh name: Ray keeps state under it, and resuming is our own matter.
        name = f"{name}-{time.time_ns():x}"
        try:
            TorchTrainer(
                work,
                train_loop_config={"job": argument},
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

    def _worker_environment(self) -> dict[str, str]:
        threads = str(self.placement.cpus_per_worker)
        cpu = {} if self.placement.use_gpu else {"DS_ACCELERATOR": "cpu", **KEEP_PAGES}
        return {
            "OMP_NUM_THREADS": threads,
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            **cpu,
        }

    def _own_cluster(self) -> dict[str, Any]:
        port = self.placement.dashboard_port
        if port is not None and _port_taken(port):
            raise ClusterError(
                f"port {port} for Ray's dashboard is in use; set cluster.dashboard_port to a free "
                "one, or to null for no dashboard"
            )
        # Logical CPUs: a machine with fewer cores than workers runs them too, only slower.
        wanted = int(self.placement.resources["CPU"])
        return {
            "num_cpus": max(wanted, os.cpu_count() or 1),
            "include_dashboard": port is not None,
            "dashboard_port": port,
            # Images travel through the page cache, not through Ray's object store.
            "object_store_memory": 128 << 20,
        }

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


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put the caller's SIGTERM handler back: `ray.init` installs one that just exits."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    """Fail at once where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"nothing answers there ({error})") from error


def _port_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _explain(error: BaseException) -> str:
    """The workers' own last words, without Ray's framing."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    if not failures:
        return f"the worker group failed: {error}"
    lines = []
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "cause", None) or failure.__cause__ or failure
        lines.append(f"worker {rank}: {type(cause).__name__}: {str(cause).strip()}")
    return "the worker group failed for good:\n  " + "\n  ".join(dict.fromkeys(lines))
