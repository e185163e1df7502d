"""One invocation of a pipeline: its folder, its lock, its screen, its workers and its tracking."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from cluster.checkpoint.store import sweep
from cluster.launch import Cluster, Placement
from cluster.resilience import incidents
from convnextv2.durable import write_json
from pipelines.config import PipelineConfig
from pipelines.graph import StageContext, StageResult
from pipelines.results import read_result, result_files
from pipelines.runtime.console import Screen
from pipelines.runtime.drivers import at_work
from pipelines.runtime.follow import EventForwarder, OffThread
from pipelines.runtime.live import METRICS, Live
from pipelines.runtime.provenance import provenance
from pipelines.runtime.run_lock import exclusive
from pipelines.runtime.tracking import Destination, Tracker
from pipelines.training.checkpoints import CHECKPOINTS
from pipelines.training.standby import prepare

TRACKED = "tracking-run.json"
"""In a stage's folder: the name of its run in MLflow."""
Job = TypeVar("Job")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Session:
    """Opened with `with`; the Ray cluster starts when the first stage asks for workers.

    Args:
        config: The whole pipeline's.
        run_dir: The run's folder, which is locked.
        screen: Shows the user what happens.
        began: When the command was started (epoch seconds); by default, now.

    Attributes:
        tracked_as: Name of this invocation's run in MLflow, the parent of its stages' runs.
        stage_results: What became of the stages so far.
        results: Final numbers of the pipeline, which that run gets at the end.
    """

    def __init__(
        self, config: PipelineConfig, run_dir: Path, screen: Screen, *, began: float | None = None
    ) -> None:
        self.config, self.run_dir, self.screen = config, run_dir, screen
        self.destination = Destination.of(config.tracking, run_dir)
        self.tracked_as = _dated(config.name)
        self.results: dict[str, float] = {}
        self.began = time.time() if began is None else began
        self.stage_results: list[StageResult] = []
        self._stack = ExitStack()
        self._cluster: Cluster | None = None
        self._tracker: Tracker | None = None
        self._alive: Callable[[], None] = lambda: None

    def __enter__(self) -> "Session":
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(exclusive(self.run_dir, self.screen.note))
        self._stack.callback(self._sweep)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.screen.stop()
        self._stack.close()
        if self._tracker is not None:
            self._close_tracking(self._tracker, "FINISHED" if kind is None else _status(kind))

    def _close_tracking(self, tracker: Tracker, status: str) -> None:
        tracker.results(self.tracked_as, self.results)
        tracker.end(self.tracked_as, status)
        unsent = tracker.close()
        if unsent:
            self.screen.note(
                f"MLflow at {self.tracking_uri} did not answer; {unsent} records wait in "
                f"{self.run_dir} and are sent next time"
            )
        if tracker.refused:
            self.screen.note(
                f"MLflow at {self.tracking_uri} refused {len(tracker.refused)} records, the first "
                f"with: {tracker.refused[0]}"
            )

    def _sweep(self) -> None:
        """Remove unfinished checkpoints: the workers that were writing them have ended."""
        for checkpoints in self.run_dir.glob(f"stages/*/*/{CHECKPOINTS}"):
            sweep(checkpoints)

    @property
    def logs(self) -> Path:
        return self.run_dir / "logs"

    @property
    def tracking_uri(self) -> str:
        return self.destination.uri

    @property
    def tracker(self) -> Tracker:
        """MLflow, with this invocation's run open."""
        if self._tracker is None:
            self._tracker = Tracker(self.destination, self.run_dir)
            self._tracker.start(
                self.tracked_as,
                parent=None,
                params=self.config.model_dump(mode="json"),
                tags={"run_dir": str(self.run_dir.resolve()), **provenance()},
            )
        return self._tracker

    @contextmanager
    def attempt(self, context: StageContext) -> Iterator[str]:
        """Open the stage's run in MLflow, the same one when a stage is resumed; yields its name."""
        path = context.directory / TRACKED
        if not path.exists():
            write_json(path, {"run": _dated(context.stage.name)})
        run = str(json.loads(path.read_text())["run"])
        self.tracker.start(
            run,
            parent=self.tracked_as,
            params=context.stage.settings,
            tags={"stage": context.stage.name, "key": context.key, **provenance()},
        )
        try:
            with at_work(context.directory) as self._alive:
                yield run
        except BaseException as error:
            self.tracker.end(run, _status(type(error)))
            raise
        self.tracker.end(run, "FINISHED")

    def track_result(self, run: str, directory: Path) -> tuple[str, ...]:
        """Send the result in a stage's folder to its run in MLflow; returns the result's files."""
        result = read_result(directory)
        self.tracker.results(run, result.values_with_ema)
        files = result_files(result)
        for name in files:
            self.tracker.artifact(run, directory / name)
        return files

    def provenance_of(self, run: str) -> dict[str, object]:
        """What a checkpoint records about where it comes from."""
        names = {"pipeline": self.tracked_as, "attempt": run}
        return {
            **provenance(),
            "config": self.config.model_dump(mode="json"),
            "mlflow.uri": self.tracking_uri,
            # The server's ids, where it has answered by now.
            "mlflow.runs": {
                what: {"name": name, "id": self.tracker.run_id(name)}
                for what, name in names.items()
            },
        }

    def run_workers(
        self,
        work: Callable[[Job], None],
        job: Job,
        context: StageContext,
        run: str,
        sizes: Sequence[int] | None = None,
    ) -> None:
        """Run `work` on the worker group while the screen and MLflow follow its events.

        `sizes` are how many workers the group may have, ascending; all that there are by default.
        """
        name = context.stage.name
        cluster = self._workers()
        metrics = cluster.metrics(METRICS, {"run": self.run_dir.resolve().name, "stage": name})
        live = Live(self.run_dir, context.directory, name, metrics, self.screen.note)
        follower = EventForwarder(context.directory, run, live, self.screen, self.tracker)

        def follow() -> None:
            self._alive()
            follower.look()

        with OffThread(follow) as look:
            cluster.run(
                work,
                job,
                name=name,
                sizes=sizes,
                prepare=partial(prepare, job),
                limits=self.config.cluster.limits,
                while_waiting=look,
                note=follower.note,
                say=self.screen.note,
            )
        incidents.flush(self.run_dir)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        while_waiting: Callable[[], None],
    ) -> Iterator[Result]:
        """Call `function` on every item, on the cluster's CPUs."""
        return self._workers().map(function, items, while_waiting=while_waiting)

    def release_workers(self) -> None:
        """End the workers that stand by for another stage, where none will need them."""
        if self._cluster is not None:
            self._cluster.release_workers()

    def _workers(self) -> Cluster:
        if self._cluster is None:
            cluster = self.config.cluster
            placement = Placement(
                num_workers=cluster.most_workers,
                min_workers=cluster.least_workers,
                warm_spare=cluster.use_gpu if cluster.warm_spare is None else cluster.warm_spare,
                cpus_per_worker=cluster.cpus_per_worker,
                use_gpu=cluster.use_gpu,
                max_failures=cluster.max_failures,
                address=cluster.address,
                dashboard_port=cluster.dashboard_port,
                start_timeout_seconds=cluster.start_timeout_seconds,
            )
            self._cluster = self._stack.enter_context(Cluster(placement))
            if self._cluster.warning:
                self.screen.note(self._cluster.warning)
        return self._cluster


def _dated(name: str) -> str:
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _status(kind: type[BaseException]) -> str:
    return "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
