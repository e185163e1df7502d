"""Running a pipeline: from a resolved configuration to a closing table."""

import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from convnextv2.data.collection import DataError
from pipelines import fashion_mnist
from pipelines.config import PipelineConfig
from pipelines.graph import Pipeline, Visit, needed_for
from pipelines.logs import redirected
from pipelines.outline import EVALUATIONS, SCRATCH, outline
from pipelines.progress import Screen
from pipelines.session import Session
from pipelines.tracking import open_hint

DEFAULT_ROOT = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for; `until` bounds the stages, `rerun` redoes some."""

    config: PipelineConfig
    run_dir: Path
    command: Sequence[str]
    until: Sequence[str] = ()
    rerun: str | None = None
    fetch_fashion_mnist: bool = False


@dataclass
class Outcome:
    """What came of it, and where it lies."""

    run_dir: Path
    mlflow: str
    log: Path
    visits: list[Visit] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "run_dir": str(self.run_dir),
            "mlflow": self.mlflow,
            "stages": [
                {
                    "name": visit.place.stage.name,
                    "status": visit.status,
                    "seconds": round(visit.seconds, 1),
                    "directory": str(visit.place.directory),
                }
                for visit in self.visits
            ],
            "evaluations": self.evaluations(),
        }

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The result of every model that was evaluated, without the large tables."""
        found = {}
        for visit in self.visits:
            name, directory = visit.place.stage.name, visit.place.directory
            if name in EVALUATIONS:
                result = json.loads((directory / "evaluation.json").read_text())
                kept = _numbers(result)
                if "ema" in result:
                    kept["ema"] = _numbers(result["ema"])
                found[EVALUATIONS[name]] = kept
            elif name == "knn":
                found[name] = _numbers(json.loads((directory / "knn.json").read_text()))
        return found


def _numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("map", "top1", "top5", "images") if key in result}


def run_pipeline(request: Request) -> Outcome:
    """Bring the pipeline to where the request wants it; libraries' noise goes to a log file."""
    log = request.run_dir / "logs" / "driver.log"
    request.run_dir.mkdir(parents=True, exist_ok=True)
    with redirected(log) as terminal:
        screen = Screen(Console(file=terminal, soft_wrap=True))
        try:
            with Session(request.config, request.run_dir, screen) as session:
                return _run(request, session, screen, log)
        except Exception:
            traceback.print_exc()  # Into the log; a person gets the message alone.
            raise


def _run(request: Request, session: Session, screen: Screen, log: Path) -> Outcome:
    from pipelines.stages import build_stages

    source = request.config.data.source
    if source is None:
        if not request.fetch_fashion_mnist:
            raise DataError("no data: give --data DIR (or --set data.source=DIR)")
        source = fashion_mnist.fetch(request.run_dir / "data" / "fashion-mnist", screen.note)
    stages = outline(request.config)
    wanted = {name for each in request.until or stages for name in needed_for(each, stages)}
    pipeline = Pipeline(
        request.run_dir,
        build_stages(request.config, source, session, request.command, wanted),
        on_start=screen.stage_starts,
        on_done=screen.stage_ends,
        outline=stages,
    )
    screen.note(f"details: {log}", style="dim")
    if request.rerun is not None:
        redone = pipeline.invalidate(request.rerun)
        screen.note(f"redoing {', '.join(redone)}")
    pipeline.run(until=request.until)
    return Outcome(request.run_dir, session.tracking_uri, log, pipeline.visits)


def closing_table(outcome: Outcome) -> Table:
    """What came out and where it is."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    results = outcome.evaluations()
    for name, result in results.items():
        table.add_row(_how(name, outcome), _in_words(result))
        if "ema" in result:
            table.add_row("  average of its weights (EMA)", _in_words(result["ema"]))
    if SCRATCH in results:
        metric = "map" if "map" in results["finetune"] else "top1"
        gain = results["finetune"][metric] - results[SCRATCH][metric]
        table.add_row("gain", f"[bold]{100 * gain:+.2f} points[/bold]")
    for visit in outcome.visits:
        if visit.place.stage.name == "report":
            table.add_row("report", str(visit.place.directory / "report.html"))
    table.add_row("run folder", str(outcome.run_dir))
    table.add_row("log", str(outcome.log))
    table.add_row("MLflow", open_hint(outcome.mlflow))
    return table


def _how(name: str, outcome: Outcome) -> str:
    """How the model of a result came about."""
    if name == SCRATCH:
        return "from scratch (control)"
    if name == "finetune":
        stages = {visit.place.stage.name: visit.place.stage for visit in outcome.visits}
        if name in stages and "weights" in stages[name].settings:
            return "from given weights"
        if "intermediate" in stages:
            return "from the intermediate step"
        return "from FCMAE pretraining" if "pretrain" in stages else "from scratch"
    return {"linear-probe": "linear probe", "knn": "nearest neighbours"}[name]


def _in_words(result: dict[str, Any]) -> str:
    best = f"{result['top1']:.2%} top-1"
    if "map" in result:
        best = f"{result['map']:.2%} mAP, {best}"
    return f"[bold]{best}[/bold], {result['top5']:.2%} top-5 on {result['images']:,} images"
