"""The page people look at: what came out, how it came about, what it took. One HTML file.

`render_report` gets data and gives a page; it reads and writes nothing. Everything is inside the
page (a content policy forbids loading anything), and every text is escaped by the template.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from cluster.goodput import OTHER
from convnextv2.analysis.reconstruct import Reconstruction
from pipelines.figures import LIGHT, chart, pictures
from pipelines.metrics import Line, curve, restarts, seconds_by_phase
from pipelines.pages import environment
from pipelines.scores import Evaluation, class_table, confused_pairs, confusion_table, margin

PRETRAINED, SCRATCH = "pretrained", "scratch"
STAGE_TITLES = {
    "write": "Writing data",
    "pretrain": "Pretraining",
    "finetune": "Fine-tuning",
    "finetune-scratch": "Fine-tuning from scratch",
    "evaluate": "Evaluation",
    "evaluate-scratch": "Evaluation from scratch",
}
PHASES = ("step", "data", "log", "checkpoint", "start-up")
MOST_SAMPLES = 8
MOST_CLASSES = 30


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """Wall seconds of one stage; status as in `pipelines.graph.Visit`."""

    name: str
    seconds: float
    status: str


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """Everything on the page.

    Args:
        title: Name of the run.
        command: The command line that made it.
        config: The resolved configuration as JSON values.
        stages: Stages in the order they ran.
        spools: Lines of "pretrain", "finetune" and, with a control, "finetune-scratch".
        evaluations: Of the model "pretrained" and, with a control, of "scratch".
        labelled_images: Images the classifiers were fine-tuned on.
        reconstruction: Samples to show; the first eight are.
        versions: Library name to version.
        commit: Of the code that ran.
        facts: What else to show at the top, such as workers, ZeRO stage, backend.
        mlflow_hint: How to open MLflow.
    """

    title: str
    command: str
    config: dict[str, Any]
    stages: Sequence[StageRow]
    spools: Mapping[str, list[Line]]
    evaluations: Mapping[str, Evaluation]
    labelled_images: int
    reconstruction: Reconstruction
    versions: Mapping[str, str]
    commit: str
    facts: Mapping[str, object]
    mlflow_hint: str


def render_report(data: ReportInput) -> str:
    """The page as one HTML document that loads nothing."""
    page = environment()
    page.filters |= {
        "percent": lambda share: "–" if share is None else f"{share:.1%}",
        "points": points_text,
        "duration": duration,
        "numbers_marked": _numbers_marked,
    }
    pretrained, scratch = data.evaluations[PRETRAINED], data.evaluations.get(SCRATCH)
    few = len(pretrained.classes) <= MOST_CLASSES
    last = [lines[-1]["time"] for lines in data.spools.values() if lines]
    template = page.get_template("report.html.j2")
    return template.render(
        data=data,
        light=LIGHT,
        verdict=verdict(data.evaluations, data.labelled_images),
        day=f"{datetime.fromtimestamp(max(last), UTC):%-d %B %Y}" if last else "",
        pretrained=pretrained,
        scratch=scratch,
        margin=margin(pretrained, scratch) if scratch else None,
        charts=_charts(data.spools),
        samples=_samples(data.reconstruction),
        norm_pix_loss=data.config.get("pretrain", {}).get("norm_pix_loss", False),
        classes=class_table(pretrained, scratch, most=MOST_CLASSES),
        confusions=[
            (name, confusion_table(evaluation)) for name, evaluation in data.evaluations.items()
        ]
        if few
        else [],
        pairs=[] if few else confused_pairs(pretrained, scratch, most=MOST_CLASSES),
        stage_titles=STAGE_TITLES,
        training=[_training_time(name, lines) for name, lines in data.spools.items()],
        phases=(*PHASES, OTHER),
        events=events(data.spools),
        config=yaml.safe_dump(data.config, sort_keys=False, allow_unicode=True),
    )


def verdict(evaluations: Mapping[str, Evaluation], labelled_images: int) -> str:
    """What the run showed, in one sentence, whichever way it went."""
    labels = f"{labelled_images:,} labels"
    pretrained, scratch = evaluations[PRETRAINED], evaluations.get(SCRATCH)
    if scratch is None:
        return (
            f"Fine-tuned on {labels} after FCMAE pretraining, the model reaches "
            f"{pretrained.top1:.1%} top-1; there is no control from scratch to compare with."
        )
    gain = pretrained.top1 - scratch.top1
    change = (
        f"{'lifts' if gain > 0 else 'lowers'} top-1 at {labels} from {scratch.top1:.1%} to "
        f"{pretrained.top1:.1%} ({points_text(gain)} points)"
    )
    if round(100 * gain, 1) == 0:
        change = f"leaves top-1 at {labels} at {pretrained.top1:.1%}, as without it"
    elif abs(gain) < margin(pretrained, scratch):
        change += f", a difference that {pretrained.images:,} test images cannot tell from chance"
    return f"FCMAE pretraining {change}."


def events(spools: Mapping[str, list[Line]]) -> list[str]:
    """Sentences about what went wrong and was mended."""
    sentences = []
    for stage, lines in spools.items():
        title = STAGE_TITLES.get(stage, stage)
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


def points_text(share: float | None) -> str:
    """A difference of shares in signed percentage points."""
    return "–" if share is None else f"{100 * share:+.1f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds in the two units a person would say."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _numbers_marked(sentence: str) -> Markup:
    return Markup(re.sub(r"[+−]?\d+\.\d(%| points)", r"<b>\g<0></b>", str(Markup.escape(sentence))))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _charts(spools: Mapping[str, list[Line]]) -> list[tuple[str, Markup]]:
    """Titles and pictures of the curves there is data for."""
    curves = {stage: curve(lines) for stage, lines in spools.items()}
    taken_over = {
        stage: [start["step"] for start in restarts(lines)] for stage, lines in spools.items()
    }
    pretraining = {PRETRAINED: curves.get("pretrain", [])}
    tuning = {
        PRETRAINED: curves.get("finetune", []),
        SCRATCH: curves.get("finetune-scratch", []),
    }
    tuning_restarts = taken_over.get("finetune", []) + taken_over.get("finetune-scratch", [])
    wanted = (
        ("Pretraining loss", "loss", pretraining, taken_over.get("pretrain", [])),
        ("Fine-tuning loss", "loss", tuning, tuning_restarts),
        ("Fine-tuning accuracy on training batches", "accuracy", tuning, tuning_restarts),
    )
    charts = []
    for title, value, series, marks in wanted:
        drawn = {
            name: [point for point in points if value in point] for name, points in series.items()
        }
        drawn = {name: points for name, points in drawn.items() if points}
        if drawn:
            share = value == "accuracy"
            picture = chart(
                title, value, drawn, restarts=marks, learning_rate=not share, percent=share
            )
            charts.append((title, picture))
    return charts


def _samples(reconstruction: Reconstruction) -> dict[str, list[Markup]]:
    return {
        kind: list(pictures(getattr(reconstruction, kind)[:MOST_SAMPLES], f"{kind}, sample"))
        for kind in ("original", "masked", "predicted")
    }


def _training_time(stage: str, lines: list[Line]) -> dict[str, Any]:
    """Where the time of a training stage went, and how many images it got through."""
    spent = seconds_by_phase(lines)
    total = math.fsum(spent.values())
    seconds = {phase: spent.pop(phase, 0.0) for phase in PHASES}
    points = curve(lines)
    images = points[-1]["images"] if points else 0
    return {
        "title": STAGE_TITLES.get(stage, stage),
        "seconds": {**seconds, OTHER: math.fsum(spent.values())},
        "total": total,
        "images": images,
        "steps": points[-1]["step"] if points else 0,
        "rate": images / total if total else 0.0,
    }
