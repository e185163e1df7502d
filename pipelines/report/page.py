"""The report of a run as one HTML file: its results, how training went, and what it took.

`render_report` makes a page of data; it reads and writes no file. Everything is inside the
page (a content policy forbids loading anything), and every text is escaped by the template.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import yaml
from markupsafe import Markup

from cluster.resilience.incidents import Incident
from convnextv2.analysis.reconstruct import Reconstruction
from pipelines.graph.kinds import KINDS, title_of
from pipelines.report.charts import LIGHT, chart, pictures, png
from pipelines.report.html import environment
from pipelines.report.sections import table_sections
from pipelines.report.summary import verdict
from pipelines.report.tables import (
    MODELS,
    PRETRAINED,
    SCRATCH,
    Comparison,
    comparisons,
    result_table,
    signed,
)
from pipelines.report.times import STATUSES, StageRow, duration, training_time
from pipelines.results import FRACTION, MetricSpec, Result
from pipelines.runtime.events import Event, Rejected, measurements, restarts
from pipelines.runtime.goodput import Account, total
from pipelines.runtime.group_time import PARTS

MOST_SAMPLES = 8
SHARE = MetricSpec(name="share", title="share")
"""Format of the shares of classes and phases."""


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """Everything on the page.

    Args:
        title: Name of the run.
        command: The command line that made it.
        config: The resolved configuration as JSON values.
        stages: Stages in the order they ran.
        wall_seconds: How long the command that makes the page has run.
        event_logs: Events of the stages that train, by name.
        accounts: Where the time of these stages went, by name.
        incidents: Their faults and recoveries.
        measured: What these stages measure while they train; those that are charted are drawn.
        results: Of the models "pretrained", "scratch" (the baseline, or the only one without
            pretraining), "probe" (linear) and "neighbours", and of others by their titles.
        pictures: Pictures of results, each a title and a PNG.
        labelled_images: Images the classifiers were trained on.
        reconstruction: Samples, of which the first eight are shown. None without FCMAE.
        versions: Library name to version.
        commit: Git commit of the code that ran.
        facts: What else to show at the top, such as workers, ZeRO stage, backend.
        mlflow_hint: How to open MLflow.
        pretraining: What "pretrained" means.
        missing: Stages that are not done, each with the reason.
        whole_command: The command line that would make what is missing.
    """

    title: str
    command: str
    config: Mapping[str, object]
    stages: Sequence[StageRow]
    wall_seconds: float
    event_logs: Mapping[str, Sequence[Event]]
    measured: Mapping[str, Sequence[MetricSpec]]
    results: Mapping[str, Result]
    labelled_images: int
    reconstruction: Reconstruction | None
    versions: Mapping[str, str]
    commit: str
    facts: Mapping[str, object]
    mlflow_hint: str
    accounts: Mapping[str, Account] = field(default_factory=dict)
    incidents: Sequence[Incident] = ()
    pictures: Sequence[tuple[str, bytes]] = ()
    pretraining: str = "FCMAE pretraining"
    missing: Mapping[str, str] = field(default_factory=dict)
    whole_command: str = ""


def render_report(data: ReportInput) -> str:
    """The page as one HTML document that loads nothing."""
    page = environment()
    page.filters |= {
        "percent": SHARE.text,
        "points": partial(signed, SHARE),
        "duration": duration,
        "moment": lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}",
        "numbers_marked": _numbers_marked,
        "title_of": title_of,
    }
    compared = comparisons(data.results)
    last = [lines[-1].time for lines in data.event_logs.values() if lines]
    template = page.get_template("report.html.j2")
    return template.render(
        data=data,
        light=LIGHT,
        verdict=verdict(data.results, data.labelled_images, pretraining=data.pretraining),
        day=f"{datetime.fromtimestamp(max(last), UTC):%-d %B %Y}" if last else "",
        results=result_table(compared),
        notes=dict.fromkeys(each.main.note for each in compared if each.main.note),
        models=MODELS,
        first=compared[0] if compared else None,
        margin=_margin_text(compared[0]) if compared else "",
        tables=table_sections(compared),
        pictures=[(title, png(content, title)) for title, content in data.pictures],
        charts=_charts(data),
        samples=_samples(data.reconstruction) if data.reconstruction else None,
        norm_pix_loss=_norm_pix_loss(data.config),
        statuses=STATUSES,
        before=sum(stage.seconds for stage in data.stages if stage.status == "done"),
        between=data.wall_seconds
        - sum(stage.seconds for stage in data.stages if stage.status != "done"),
        training=[
            training_time(name, account, data.event_logs.get(name, ()))
            for name, account in data.accounts.items()
        ],
        parts=PARTS,
        goodput=total(data.accounts.values()),
        events=events(data.event_logs),
        config=yaml.safe_dump(data.config, sort_keys=False, allow_unicode=True),
    )


def events(event_logs: Mapping[str, Sequence[Event]]) -> list[str]:
    """Sentences about failures and how the run recovered."""
    sentences = []
    for stage, lines in event_logs.items():
        title = title_of(stage)
        again = restarts(lines)
        if again:
            times = "once" if len(again) == 1 else f"{len(again)} times"
            places = ", then ".join(
                f"from step {start.step:,} with {_counted(start.workers, 'worker')}"
                for start in again
            )
            sentences.append(
                f"{title}: worker group was restarted {times}; training went on {places}."
            )
        sentences += [
            f"{title}: checkpoint {Path(event.path).name} was rejected: {event.reason}."
            for event in lines
            if isinstance(event, Rejected)
        ]
    return sentences


def _numbers_marked(sentence: str) -> Markup:
    return Markup(re.sub(r"[+−]?\d+\.\d(%| points)", r"<b>\g<0></b>", str(Markup.escape(sentence))))


def _margin_text(compared: Comparison) -> str:
    """The 95% margin of the gain, with its unit; "" where it is not known."""
    if compared.margin is None:
        return ""
    metric = compared.main.main
    return f"{metric.change_text(compared.margin)[1:]} {metric.change_unit}".rstrip()


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _charts(data: ReportInput) -> list[tuple[str, Markup]]:
    """Titles and pictures of the curves there is data for."""
    charts = []
    for stages in _drawn_together():
        specs = {spec.name: spec for stage in stages for spec in data.measured.get(stage, ())}
        for spec in specs.values():
            title = f"{title_of(stages[0])} {spec.title}"
            if spec.charted and (picture := _chart(data, stages, spec, title)):
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


def _chart(data: ReportInput, stages: Sequence[str], spec: MetricSpec, title: str) -> Markup | None:
    """One metric of stages that are drawn together; None where none of them has measured it."""
    scratch = {"finetune-scratch"} if PRETRAINED in data.results else {"finetune"}
    event_logs = {stage: data.event_logs[stage] for stage in stages if stage in data.event_logs}
    drawn = {
        SCRATCH if stage in scratch else PRETRAINED: points
        for stage, lines in event_logs.items()
        if (points := [event for event in measurements(lines) if spec.name in event.values])
    }
    if not drawn:
        return None
    return chart(
        title,
        spec.name,
        drawn,
        restarts=[start.step for lines in event_logs.values() for start in restarts(lines)],
        learning_rate=spec.name == "loss",
        percent=spec.unit == FRACTION,
    )


def _norm_pix_loss(config: Mapping[str, object]) -> bool:
    pretrain = config.get("pretrain")
    return isinstance(pretrain, Mapping) and bool(pretrain.get("norm_pix_loss"))


def _samples(reconstruction: Reconstruction) -> dict[str, list[Markup]]:
    return {
        kind: list(pictures(getattr(reconstruction, kind)[:MOST_SAMPLES], f"{kind}, sample"))
        for kind in ("original", "masked", "predicted")
    }
