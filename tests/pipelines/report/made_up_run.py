"""A run as it may come out, made up: input for tests of the report, and for looking at it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cluster.resilience.incidents import Incident
from convnextv2.analysis.reconstruct import Reconstruction
from convnextv2.data.sources.idx import FASHION_CLASSES
from convnextv2.recipe.duration import epochs
from convnextv2.tasks.classify import ClassCounts
from pipelines.presets.demo import demo
from pipelines.report.page import ReportInput
from pipelines.report.times import StageRow
from pipelines.results import Metric, MetricSpec, Result
from pipelines.results.classification import accuracies, single_label
from pipelines.results.known import MAP
from pipelines.runtime.drivers import Span
from pipelines.runtime.events import Checkpoint, End, Event, Point, Start
from pipelines.runtime.goodput import Account, account_of

BEGAN = 1.76e9
"""When the first worker group of every stage has started."""
STARTING_SECONDS, DEAD_SECONDS, HAND_OVER_SECONDS = 20.0, 12.0, 2.0
BETWEEN_SECONDS = 8.4
KILLED = Incident(
    id="pretrain-1",
    time=BEGAN + 48.0,
    stage="pretrain",
    generation=1,
    cause="killed",
    rank=1,
    node="6f1b",
    host="10.0.0.7",
    phase="step",
    step=423,
    error="killed by SIGKILL",
    workers=(2, 2),
    lost_steps=23,
    seconds={"detection": 0.2, "teardown": 0.3, "engine": 9.0, "first step": 1.0},
    recovered=True,
)
"""What happened to the worker that died."""


def made_up_events(
    *, steps: int, first: float, last: float, peak_lr: float, accuracy: bool, killed_at: int = 0
) -> list[Event]:
    """A training stage's lines, the first group's from BEGAN on; `killed_at`: a worker died there,
    two steps were done again.
    """
    noise = np.random.default_rng(steps + round(100 * last))
    began = BEGAN
    lines: list[Event] = [Start(step=0, workers=2, total=steps, time=began + 9)]
    spent = {"start-up": 9.0, "step": 0.0, "data": 0.0, "log": 0.0, "checkpoint": 0.0, "other": 0.1}
    order = list(range(10, steps + 1, 10))
    if killed_at:
        again = order.index(killed_at) + 3
        order = order[:again] + order[order.index(killed_at) + 1 :]
    previous = 0
    for step in order:
        if step <= previous:
            began += sum(spent.values()) + DEAD_SECONDS
            lines.append(Start(step=killed_at, workers=2, total=steps, time=began + 9))
        previous = step
        done = step / steps
        spent = {**spent, "step": step * 0.08, "data": step * 0.006, "log": step * 0.001}
        values = {
            "images": step * 128, "epoch": done * 8,
            "loss": last + (first - last) * math.exp(-5 * done) + noise.normal(0, 0.01),
            "lr": peak_lr * min(1, done / 0.1) * (1 + math.cos(math.pi * done)) / 2,
        }  # fmt: skip
        if accuracy:
            values["accuracy"] = min(1.0, 1 - 0.35 * values["loss"] + noise.normal(0, 0.02))
        lines.append(
            Point(step=step, time=began + sum(spent.values()), values=values, seconds={**spent})
        )
        if step % 100 == 0:
            spent["checkpoint"] = step * 0.004
            now = began + sum(spent.values())
            lines.append(
                Checkpoint(step=step, time=now, bytes=1, written_seconds=0.1, seconds=spent)
            )
    end = began + sum(spent.values())
    return [*lines, End(step=steps, time=end, seconds=spent)]


def accounts(event_logs: Mapping[str, Sequence[Event]]) -> dict[str, Account]:
    """Where the time went, of drivers that began before the first group and handed over."""
    return {
        name: account_of(
            name,
            lines,
            [Span(BEGAN - STARTING_SECONDS, lines[-1].time + HAND_OVER_SECONDS)],
            [KILLED],
        )
        for name, lines in event_logs.items()
    }


def training_row(name: str, lines: Sequence[Event]) -> StageRow:
    """The row of a training stage, from before its first group starts until the hand-over."""
    finished = lines[-1].time + HAND_OVER_SECONDS
    seconds = finished - (BEGAN - STARTING_SECONDS)
    return StageRow(name=name, seconds=seconds, status="run", finished=finished)


def made_up_result(classes: tuple[str, ...], recalls: np.ndarray[Any, Any]) -> Result:
    """Each class has 1,000 images; mistakes go to the neighbouring classes, more to the next."""
    num_correct = np.round(1000 * recalls).astype(int)
    counts = np.diag(num_correct)
    for label, missed in enumerate(1000 - num_correct):
        counts[label, (label + 1) % len(classes)] += missed - missed // 3
        counts[label, (label + 2) % len(classes)] += missed // 3
    confusion = torch.from_numpy(counts)
    top5 = torch.tensor(round(0.9871 * counts.sum()))
    by_class = ClassCounts(confusion.sum(dim=1), confusion.diagonal(), top5, confusion)
    return single_label(by_class, classes)


def with_top1(result: Result, change: float) -> Result:
    """The same result, its top-1 changed by so much."""
    main = result.main.model_copy(update={"value": result.main.value + change})
    return result.model_copy(update={"metrics": (main, *result.metrics[1:])})


def of_several_classes(result: Result, precision: float) -> Result:
    """A result as it is where images may be of several classes."""
    per_class = result.tables[0].model_copy(update={"note": "Average precision of each class"})
    main = Metric.of(MAP, precision, images=result.main.images)
    return result.model_copy(
        update={
            "metrics": (main, *result.metrics),
            "tables": (per_class,),
            "note": "Images may be of several classes.",
        }
    )


def made_up_input(reconstruction: Reconstruction | None = None) -> ReportInput:
    """A demo run as it may come out: 79.6% against 77.0%, one worker killed on the way."""
    recalls = np.array([0.75, 0.93, 0.66, 0.82, 0.71, 0.90, 0.45, 0.88, 0.94, 0.92])
    gains = np.array([0.02, 0.01, 0.06, 0.03, 0.05, 0.02, -0.01, 0.02, 0.02, 0.04])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 32, 32, 3), dtype=np.uint8)
    event_logs = {
        "pretrain": made_up_events(
            steps=1240, first=1.0, last=0.41, peak_lr=2e-3, accuracy=False, killed_at=400
        ),
        "finetune": made_up_events(steps=400, first=2.2, last=0.62, peak_lr=1.5e-3, accuracy=True),
        "finetune-scratch": made_up_events(
            steps=400, first=2.3, last=0.74, peak_lr=1.5e-3, accuracy=True
        ),
    }
    trained = [training_row(name, lines) for name, lines in event_logs.items()]
    return ReportInput(
        title="demo",
        command="convnextv2 demo --set seed=1",
        config=demo().model_dump(mode="json"),
        stages=[
            StageRow(name="write", seconds=14.2, status="done", finished=BEGAN - 3600),
            *trained,
            StageRow(name="evaluate", seconds=6.3, status="run", finished=BEGAN + 400),
            StageRow(name="evaluate-scratch", seconds=6.1, status="run", finished=BEGAN + 410),
        ],
        wall_seconds=sum(row.seconds for row in trained) + 6.3 + 6.1 + BETWEEN_SECONDS,
        event_logs=event_logs,
        accounts=accounts(event_logs),
        incidents=[KILLED],
        measured=measured(*event_logs),
        results={
            "pretrained": made_up_result(FASHION_CLASSES, recalls),
            "scratch": made_up_result(FASHION_CLASSES, recalls - gains),
        },
        labelled_images=1000,
        reconstruction=reconstruction or Reconstruction(pixels[0], pixels[1], pixels[2]),
        versions={"python": "3.11.2", "torch": "2.14.1", "ray": "2.60.0", "deepspeed": "0.19.8"},
        commit="fedb7f4",
        facts={"model": "pocket, 32 px", "workers": 2, "ZeRO stage": 1, "backend": "gather"},
        mlflow_hint="mlflow ui --backend-store-uri sqlite:///runs/demo/mlflow.db",
    )


def measured(*stages: str) -> dict[str, tuple[MetricSpec, ...]]:
    """What stages of these names measure while they train."""
    config = demo()
    assert config.pretrain is not None
    assert config.finetune is not None
    tuning = config.finetune.model_copy(update={"evaluate_every": epochs(1), "ema_decay": 0.9})
    return {
        stage: tuple(
            (config.pretrain if stage == "pretrain" else tuning).measured(config.data).values()
        )
        for stage in stages
    }


def without_control(data: ReportInput) -> ReportInput:
    """The same run with `finetune.scratch_baseline` off."""
    return dataclasses.replace(
        data,
        stages=[stage for stage in data.stages if "scratch" not in stage.name],
        event_logs={
            name: lines for name, lines in data.event_logs.items() if "scratch" not in name
        },
        accounts={name: each for name, each in data.accounts.items() if "scratch" not in name},
        results={"pretrained": data.results["pretrained"]},
    )


def with_average(data: ReportInput) -> ReportInput:
    """The same run with `finetune.ema_decay`: the average is a point better."""
    results = {
        name: found.model_copy(update={"ema": with_top1(found, 0.01)})
        for name, found in data.results.items()
    }
    return dataclasses.replace(data, results=results)


def frozen(data: ReportInput) -> ReportInput:
    """A linear probe and nearest neighbours instead of fine-tuning."""
    event_logs = {
        "pretrain": data.event_logs["pretrain"],
        "linear-probe": data.event_logs["finetune"],
    }
    return dataclasses.replace(
        data,
        stages=[training_row(name, lines) for name, lines in event_logs.items()],
        event_logs=event_logs,
        accounts=accounts(event_logs),
        measured=measured(*event_logs),
        results={
            "probe": data.results["pretrained"],
            "neighbours": Result(metrics=accuracies(6120, 8300, 10_000), facts={"bank": 60_000}),
        },
    )


def supervised(data: ReportInput) -> ReportInput:
    """Training from scratch and nothing else."""
    return dataclasses.replace(
        data,
        stages=[stage for stage in data.stages if stage.name in ("write", "finetune", "evaluate")],
        event_logs={"finetune": data.event_logs["finetune"]},
        accounts={"finetune": data.accounts["finetune"]},
        incidents=(),
        results={"scratch": data.results["scratch"]},
        reconstruction=None,
        pretraining="",
    )
