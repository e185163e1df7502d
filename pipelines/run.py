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
from pipelines.graph import Pipeline, Visit
from pipelines.logs import redirected
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
            "evaluations": dict(self.evaluations()),
        }

    def evaluations(self) -> list[tuple[str, dict[str, Any]]]:
        """(model, result) for every evaluated model, without the large tables."""
        found = []
        for visit in self.visits:
            name = visit.place.stage.name
            if name.startswith("evaluate"):
                result = json.loads((visit.place.directory / "evaluation.json").read_text())
                kept = {key: result[key] for key in ("top1", "top5", "images")}
                found.append((name.replace("evaluate", "finetune"), kept))
        return found


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
    pipeline = Pipeline(
        request.run_dir,
        build_stages(request.config, source, session, request.command),
        on_start=screen.stage_starts,
        on_done=screen.stage_ends,
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
    for name, result in outcome.evaluations():
        how = "from scratch (control)" if name.endswith("scratch") else "from FCMAE pretraining"
        table.add_row(
            how,
            f"[bold]{result['top1']:.2%}[/bold] top-1, {result['top5']:.2%} top-5 "
            f"on {result['images']:,} images",
        )
    results = dict(outcome.evaluations())
    if len(results) == 2:
        gain = results["finetune"]["top1"] - results["finetune-scratch"]["top1"]
        table.add_row("gain", f"[bold]{100 * gain:+.2f} points[/bold]")
    for visit in outcome.visits:
        if visit.place.stage.name == "report":
            table.add_row("report", str(visit.place.directory / "report.html"))
    table.add_row("run folder", str(outcome.run_dir))
    table.add_row("log", str(outcome.log))
    table.add_row("MLflow", open_hint(outcome.mlflow))
    return table
