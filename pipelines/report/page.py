"""The page people look at: what came out, how it came about, what it took. One HTML file.

`render_report` gets data and gives a page; it reads and writes nothing. Everything is inside the
page (a content policy forbids loading anything), and every text is escaped by the template.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from convnextv2.analysis.reconstruct import Reconstruction
from pipelines.graph.kinds import KINDS, title_of
from pipelines.report.charts import LIGHT, chart, pictures
from pipelines.report.html import environment
from pipelines.report.summary import points_text, verdict
from pipelines.report.tables import (
    MODELS,
    PRETRAINED,
    SCRATCH,
    Evaluation,
    class_table,
    confused_pairs,
    confusion_table,
    margin,
    results,
)
from pipelines.report.times import PHASES, STATUSES, StageRow, duration, training_time
from pipelines.runtime.events import Line, curve, restarts

VALUES = {
    "loss": ("point", "loss"),
    "accuracy": ("point", "accuracy on training batches"),
    "val_top1": ("validation", "accuracy on the validation split"),
    "val_top1_ema": ("validation", "accuracy on the validation split, EMA"),
    "val_map": ("validation", "mAP on the validation split"),
    "val_map_ema": ("validation", "mAP on the validation split, EMA"),
}
"""Values that are drawn: in which lines they are, and what they are called."""
MOST_SAMPLES = 8
MOST_CLASSES = 30


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """Everything on the page.

    Args:
        title: Name of the run.
        command: The command line that made it.
        config: The resolved configuration as JSON values.
        stages: Stages in the order they ran.
        wall_seconds: Of the command that made the page, until now.
        spools: Lines of the stages that train, by name.
        evaluations: Of the models "pretrained", "scratch" (the control, or all there is without
            pretraining) and "probe" (linear).
        labelled_images: Images the classifiers were trained on.
        reconstruction: Samples to show; the first eight are. None without FCMAE.
        versions: Library name to version.
        commit: Of the code that ran.
        facts: What else to show at the top, such as workers, ZeRO stage, backend.
        mlflow_hint: How to open MLflow.
        neighbours: What knn.json holds, if that was asked for.
        pretraining: What "pretrained" means.
        missing: Stages that are not done, each with why.
        whole_command: The command line that would make what is missing.
    """

    title: str
    command: str
    config: dict[str, Any]
    stages: Sequence[StageRow]
    wall_seconds: float
    spools: Mapping[str, list[Line]]
    evaluations: Mapping[str, Evaluation]
    labelled_images: int
    reconstruction: Reconstruction | None
    versions: Mapping[str, str]
    commit: str
    facts: Mapping[str, object]
    mlflow_hint: str
    neighbours: Mapping[str, Any] | None = None
    pretraining: str = "FCMAE pretraining"
    missing: Mapping[str, str] = field(default_factory=dict)
    whole_command: str = ""


def render_report(data: ReportInput) -> str:
    """The page as one HTML document that loads nothing."""
    page = environment()
    page.filters |= {
        "percent": lambda share: "–" if share is None else f"{share:.1%}",
        "points": points_text,
        "duration": duration,
        "numbers_marked": _numbers_marked,
        "title_of": title_of,
    }
    model = next((name for name in MODELS if name in data.evaluations), None)
    main = data.evaluations[model] if model else None
    control = data.evaluations.get(SCRATCH) if model == PRETRAINED else None
    few = main is not None and len(main.classes) <= MOST_CLASSES
    last = [lines[-1]["time"] for lines in data.spools.values() if lines]
    template = page.get_template("report.html.j2")
    return template.render(
        data=data,
        light=LIGHT,
        verdict=verdict(
            data.evaluations, data.neighbours, data.labelled_images, pretraining=data.pretraining
        ),
        day=f"{datetime.fromtimestamp(max(last), UTC):%-d %B %Y}" if last else "",
        results=results(data.evaluations, data.neighbours),
        models=MODELS,
        model=model,
        main=main,
        scratch=control,
        margin=margin(main, control) if main and control else None,
        charts=_charts(data),
        samples=_samples(data.reconstruction) if data.reconstruction else None,
        norm_pix_loss=(data.config.get("pretrain") or {}).get("norm_pix_loss", False),
        classes=class_table(main, control, most=MOST_CLASSES) if main else [],
        confusions=[
            (name, confusion_table(evaluation))
            for name, evaluation in data.evaluations.items()
            if evaluation.confusion
        ]
        if few
        else [],
        pairs=confused_pairs(main, control, most=MOST_CLASSES) if main and not few else [],
        statuses=STATUSES,
        before=sum(stage.seconds for stage in data.stages if stage.status == "done"),
        between=data.wall_seconds
        - sum(stage.seconds for stage in data.stages if stage.status != "done"),
        training=[
            training_time(stage, data.spools[stage.name])
            for stage in data.stages
            if stage.name in data.spools
        ],
        phases=PHASES,
        events=events(data.spools),
        config=yaml.safe_dump(data.config, sort_keys=False, allow_unicode=True),
    )


def events(spools: Mapping[str, list[Line]]) -> list[str]:
    """Sentences about what went wrong and was mended."""
    sentences = []
    for stage, lines in spools.items():
        title = title_of(stage)
        again = restarts(lines)
        if again:
            times = "once" if len(again) == 1 else f"{len(again)} times"
            places = ", then ".join(
                f"from step {start['step']:,} with {_counted(start['workers'], 'worker')}"
                for start in again
            )
            sentences.append(
                f"{title}: worker group was restarted {times}; training went on {places}."
            )
        sentences += [
            f"{title}: checkpoint {Path(line['path']).name} was rejected: {line['reason']}."
            for line in lines
            if line["kind"] == "rejected"
        ]
    return sentences


def _numbers_marked(sentence: str) -> Markup:
    return Markup(re.sub(r"[+−]?\d+\.\d(%| points)", r"<b>\g<0></b>", str(Markup.escape(sentence))))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _charts(data: ReportInput) -> list[tuple[str, Markup]]:
    """Titles and pictures of the curves there is data for."""
    spools = data.spools
    scratch = {"finetune-scratch"} if PRETRAINED in data.evaluations else {"finetune"}
    taken_over = {
        stage: [start["step"] for start in restarts(lines)] for stage, lines in spools.items()
    }
    charts = []
    for stages, (value, (kind, words)) in itertools.product(_drawn_together(), VALUES.items()):
        drawn = {
            SCRATCH if stage in scratch else PRETRAINED: points
            for stage in stages
            if (points := [point for point in curve(spools.get(stage, []), kind) if value in point])
        }
        if drawn:
            title, share = f"{title_of(stages[0])} {words}", value != "loss"
            marks = [step for stage in stages for step in taken_over.get(stage, [])]
            picture = chart(
                title, value, drawn, restarts=marks, learning_rate=not share, percent=share
            )
            charts.append((title, picture))
    return charts


def _drawn_together() -> list[list[str]]:
    """The stages that train, each with its baseline if it has one."""
    trained = [kind for kind in KINDS.values() if kind.trains]
    return [
        [kind.name, *(other.name for other in trained if other.baseline_of == kind.name)]
        for kind in trained
        if not kind.baseline_of
    ]


def _samples(reconstruction: Reconstruction) -> dict[str, list[Markup]]:
    return {
        kind: list(pictures(getattr(reconstruction, kind)[:MOST_SAMPLES], f"{kind}, sample"))
        for kind in ("original", "masked", "predicted")
    }
