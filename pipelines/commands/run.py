"""Running a pipeline: from a resolved configuration to a closing table."""

import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.text import Text

from convnextv2.data.collection import DataError
from convnextv2.durable import atomically
from pipelines.config import PipelineConfig
from pipelines.config.file import CONFIG, as_yaml
from pipelines.datasets import fashion_mnist
from pipelines.graph import Pipeline, Stage, StageResult, needed_for
from pipelines.graph.kinds import KINDS, title_of
from pipelines.graph.outline import outline, wanted_stages
from pipelines.results import Result, find_result
from pipelines.runtime.console import Screen
from pipelines.runtime.events import curve, read_events
from pipelines.runtime.logs import redirected
from pipelines.runtime.session import Session
from pipelines.runtime.tracking import open_hint

DATA = "data"
"""In the run folder: photographs that were fetched."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for.

    Args:
        config: The configuration, resolved and checked.
        run_dir: The run's folder.
        command: The command line, word by word.
        until: Names of the stages to run, with all they need; by default all stages.
        rerun: A stage that is done again, with all stages downstream of it.
        render_only: Only the report is made, of the results there are.
        whole_command: The command line that would make the results such a report lacks.
        fetch_fashion_mnist: Download it, if the configuration names no images.
        began: When the command was started (epoch seconds).
    """

    config: PipelineConfig
    run_dir: Path
    command: Sequence[str]
    until: Sequence[str] = ()
    rerun: str | None = None
    render_only: bool = False
    whole_command: str = ""
    fetch_fashion_mnist: bool = False
    began: float = field(default_factory=time.time)


@dataclass
class Outcome:
    """What became of the stages, and where to look: run folder, MLflow, log."""

    run_dir: Path
    mlflow: str
    log: Path
    stage_results: list[StageResult] = field(default_factory=list)

    def as_json(self) -> dict[str, JsonValue]:
        return {
            "run_dir": str(self.run_dir),
            "mlflow": self.mlflow,
            "stages": [
                {
                    "name": stage_result.context.stage.name,
                    "status": stage_result.status,
                    "seconds": round(stage_result.seconds, 1),
                    "directory": str(stage_result.context.directory),
                }
                for stage_result in self.stage_results
            ],
            "evaluations": self.evaluations(),
        }

    def evaluations(self) -> dict[str, JsonValue]:
        """The metrics of every model that was evaluated, and of how many images they are."""
        found: dict[str, JsonValue] = {}
        for name, result in self.results().items():
            ema = {} if result.ema is None else {"ema": _numbers(result.ema)}
            found[name] = {**_numbers(result), **ema}
        return found

    def results(self) -> dict[str, Result]:
        """The stages' results; what a stage evaluates goes by the name of what trained it."""
        found = {}
        for stage_result in self.stage_results:
            name = stage_result.context.stage.name
            result = find_result(stage_result.context.directory)
            if result is not None:
                found[KINDS[name].evaluates or name] = result
        return found

    def metrics(self) -> dict[str, float]:
        """Final numbers by dotted names: `finetune.top1`, `finetune.ema.top1`, `pretrain.loss`."""
        found: dict[str, float] = {}
        for name, result in self.results().items():
            averaged = result.ema.values if result.ema else {}
            for prefix, values in ((name, result.values), (f"{name}.ema", averaged)):
                found |= {f"{prefix}.{metric}": value for metric, value in values.items()}
        for stage_result in self.stage_results:
            points = curve(read_events(stage_result.context.directory))
            if points and "loss" in points[-1].values:
                found[f"{stage_result.context.stage.name}.loss"] = points[-1].values["loss"]
        return found


def _numbers(result: Result) -> dict[str, JsonValue]:
    return {**result.values, "images": result.main.images}


def run_pipeline(request: Request) -> Outcome:
    """Run the stages that the request names; what libraries print goes to a log file.

    Raises:
        ValueError: When the request is refused; then there is no new folder.
    """
    if request.render_only and not request.run_dir.is_dir():
        raise ValueError(f"--run-dir {request.run_dir}: there is no such folder to report on")
    new = not request.run_dir.exists()
    try:
        return _run_in_folder(request)
    except ValueError:
        if new and not any((request.run_dir / name).exists() for name in (CONFIG, DATA)):
            shutil.rmtree(request.run_dir)  # It has nothing but a log, and a lock that is free.
        raise


def _run_in_folder(request: Request) -> Outcome:
    log = request.run_dir / "logs" / "driver.log"
    request.run_dir.mkdir(parents=True, exist_ok=True)
    with redirected(log) as terminal:
        screen = Screen(Console(file=terminal, soft_wrap=True))
        try:
            session = Session(request.config, request.run_dir, screen, began=request.began)
            with session:
                return _run(request, session, screen, log)
        except Exception:
            traceback.print_exc()  # Into the log; the terminal gets the message alone.
            raise


def _run(request: Request, session: Session, screen: Screen, log: Path) -> Outcome:
    pipeline = Pipeline(
        request.run_dir,
        _stages(request, session, screen),
        on_start=screen.stage_starts,
        on_done=screen.stage_ends,
        say=screen.note,
        stage_results=session.stage_results,
    )
    with atomically(request.run_dir / CONFIG) as partial:
        partial.write_text(as_yaml(request.config))
    outcome = Outcome(request.run_dir, session.tracking_uri, log, pipeline.stage_results)
    screen.note(f"what libraries print goes to {log}", style="dim")
    try:
        pipeline.run(rerun=request.rerun)
    finally:
        session.results = outcome.metrics()
    return outcome


def _stages(request: Request, session: Session, screen: Screen) -> list[Stage]:
    """The stages that the request is about; what they need is among them."""
    from pipelines.stages import build_stages, stages_of_report

    config, command = request.config, request.command
    stages = outline(config)
    wanted = wanted_stages(config, request.until)
    redone = needed_for(request.rerun, stages)[-1:] if request.rerun is not None else []
    if request.render_only:
        wanted = {"report"}
    if not wanted.issuperset(redone):
        there = ", ".join(name for name in stages if name in wanted)
        raise ValueError(f"--rerun {request.rerun}: this command has no stages but {there}")
    source = _source(request, screen)
    if request.render_only:
        return stages_of_report(
            config, source, session, command, whole_command=request.whole_command
        )
    return build_stages(config, source, session, command, wanted)


def _source(request: Request, screen: Screen) -> Path:
    if request.config.data.source is not None:
        return request.config.data.source
    if not request.fetch_fashion_mnist:
        raise DataError("no data: give --data DIR (or --set data.source=DIR)")
    return fashion_mnist.fetch(request.run_dir / DATA / "fashion-mnist", screen.note)


def closing_words(outcome: Outcome) -> Text:
    """The results and where they are, a line each; to be printed unwrapped, for copying paths."""
    rows = []
    results = outcome.results()
    for name, result in results.items():
        rows.append((_how(name, outcome), _in_words(result)))
        if result.ema is not None:
            rows.append(("  average of its weights (EMA)", _in_words(result.ema)))
    for name, baseline in results.items():
        compared = KINDS[name].baseline_of
        if compared in results:  # A report may find the baseline alone.
            main = results[compared].main
            gain = main.change_text(main.value - baseline.main.value, decimals=2)
            rows.append(("gain", Text(f"{gain} {main.change_unit}".rstrip(), "bold")))
    for stage_result in outcome.stage_results:
        if stage_result.context.stage.name == "report":
            rows.append(("report", Text(str(stage_result.context.directory / "report.html"))))
    rows.append(("run folder", Text(str(outcome.run_dir))))
    rows.append(("log", Text(str(outcome.log))))
    rows.append(("MLflow", Text(open_hint(outcome.mlflow))))
    width = max(len(name) for name, _ in rows)
    return Text("\n").join(Text(f"  {name:{width}}  ").append(said) for name, said in rows)


def _how(name: str, outcome: Outcome) -> str:
    """How the model of a result was trained."""
    if KINDS[name].baseline_of:
        return "from scratch (baseline)"
    if name == "finetune":
        stages = {
            stage_result.context.stage.name: stage_result.context.stage
            for stage_result in outcome.stage_results
        }
        if name in stages and "weights" in stages[name].settings:
            return "from given weights"
        if "intermediate" in stages:
            return "from the intermediate step"
        return "from FCMAE pretraining" if "pretrain" in stages else "from scratch"
    return title_of(name).lower()


def _in_words(result: Result) -> Text:
    first, *others = (
        f"{metric.text(metric.value, decimals=2)} {metric.title}" for metric in result.metrics
    )
    rest = "".join(f", {words}" for words in others)
    return Text(first, "bold").append(f"{rest} on {result.main.images:,} images", "not bold")
