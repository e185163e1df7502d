"""A stage with metrics that nothing else in the project knows: they show up everywhere."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console

from cluster import durable
from cluster.checkpoint.publishing import publish
from cluster.checkpoint.retention import prune
from cluster.checkpoint.store import step_of, steps
from convnextv2.data.order.global_order import GlobalOrder
from pipelines.commands.run import Outcome, closing_words
from pipelines.config import DataConfig, FinetuneConfig, PipelineConfig
from pipelines.config.checks import find_conflicts
from pipelines.graph import Outputs, Pipeline, Stage, StageContext, hash_files
from pipelines.graph.kinds import KINDS, StageKind
from pipelines.presets import load_preset
from pipelines.results import Column, Metric, MetricSpec, Picture, Result, Table, write_result
from pipelines.runtime.console import Screen
from pipelines.runtime.session import Session
from pipelines.stages import report
from pipelines.stages.setup import StageSetup
from pipelines.training.job import Plan
from tests.pipelines.conftest import keep_own_store
from tests.pipelines.stages.jobs import made_up_job

pytestmark = pytest.mark.slow

MIOU = MetricSpec(name="mIoU", title="mIoU")
LOSS = MetricSpec(name="loss", title="pixel loss", unit="nats", direction="lower")
RESULT = Result(
    metrics=(
        Metric.of(MIOU, 0.4125, images=480, interval=(0.40, 0.425)),
        Metric.of(LOSS, 1.25, images=480),
    ),
    tables=(
        Table(
            name="regions",
            title="By size of the region",
            columns=(Column(title="size"), Column(title="IoU", unit="fraction")),
            rows=(("under 32 px", 0.125), ("more", 0.625)),
        ),
    ),
    pictures=(Picture(title="The worst masks", file="worst.png"),),
)


class SegmentConfig(FinetuneConfig):
    """The recipe of a task that is not classification."""

    def training_metrics(self) -> tuple[MetricSpec, ...]:
        return (LOSS,)

    def validation_metrics(self, data: DataConfig) -> tuple[MetricSpec, ...]:
        return MIOU, LOSS


def segment(session: Session) -> Stage:
    def run(context: StageContext) -> Outputs:
        with session.attempt(context) as run:
            Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(context.directory / "worst.png")
            write_result(context.directory, RESULT)
            files = session.track_result(run, context.directory)
        return hash_files(context.directory, *files)

    return Stage(name="segment", run=run, settings={})


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Of a run of the stage and the report."""
    kind = StageKind(name="segment", title="Segmentation", build="tests:segment")
    run_dir, config = tmp_path_factory.mktemp("run"), load_preset("demo")
    with pytest.MonkeyPatch.context() as monkeypatch:
        keep_own_store(monkeypatch)
        monkeypatch.setitem(KINDS, "segment", kind)
        with Session(config, run_dir, Screen(Console(quiet=True))) as session:
            setup = StageSetup(
                kind=KINDS["report"], config=config, session=session, depends_on=("segment",),
                source=run_dir, command=["convnextv2", "run"],
            )  # fmt: skip
            stages = [segment(session), report.build(setup)]
            results = Pipeline(run_dir, stages, stage_results=session.stage_results).run()
            outcome = Outcome(run_dir, session.tracking_uri, run_dir / "log", results)
            session.results = outcome.metrics()
        yield outcome


def test_it_is_in_the_closing_table(outcome: Outcome) -> None:
    text = io.StringIO()
    Console(file=text, width=80, soft_wrap=True).print(closing_words(outcome))
    first = text.getvalue().splitlines()[0].split()
    assert " ".join(first) == "segmentation 41.25% mIoU, 1.25 nats pixel loss on 480 images"


def test_it_is_in_the_json(outcome: Outcome) -> None:
    found = json.loads(json.dumps(outcome.as_json()))["evaluations"]
    assert found == {"segment": {"mIoU": 0.4125, "loss": 1.25, "images": 480}}


def test_it_is_in_mlflow(outcome: Outcome) -> None:
    client = MlflowClient(tracking_uri=outcome.mlflow)
    runs = {run.data.tags.get("stage", ""): run for run in client.search_runs(["1"])}
    assert runs["segment"].data.metrics == {"mIoU": 0.4125, "loss": 1.25}
    artifacts = client.list_artifacts(runs["segment"].info.run_id)
    assert {artifact.path for artifact in artifacts} == {"result.json", "worst.png"}
    assert runs[""].data.metrics == {"segment.mIoU": 0.4125, "segment.loss": 1.25}


def test_it_is_on_the_page(outcome: Outcome) -> None:
    page = (outcome.stage_results[-1].context.directory / "report.html").read_text()
    assert "<th>mIoU</th><th>pixel loss</th><th>test images</th>" in page
    assert "Segmentation</td><td>41.2%</td><td>1.25 nats</td><td>480</td>" in page
    assert "Segmentation reaches <b>41.2%</b> mIoU." in page
    assert "<h2>By size of the region</h2>" in page
    assert "<tr><td>under 32 px</td><td>12.5%</td></tr>" in page
    assert "<figcaption>The worst masks</figcaption><img" in page
    assert 'width="12" height="8" alt="The worst masks" src="data:image/png' in page
    assert "top-1" not in page.split("Configuration, as resolved")[0]


def config_with(**changes: Any) -> PipelineConfig:
    config = load_preset("demo", ["finetune.evaluate_every=5%", "finetune.ema_decay=0.9"])
    assert config.finetune is not None
    recipe = SegmentConfig(**{**config.finetune.model_dump(), **changes})
    return config.model_copy(update={"finetune": recipe})


@pytest.mark.parametrize(
    ("name", "best"), [("val_mIoU", 2), ("val_mIoU_ema", 1), ("val_loss", 1), ("loss", 2)]
)
def test_the_best_checkpoint_may_be_that_of_its_metrics(
    name: str, best: int, tmp_path: Path
) -> None:
    config = config_with(keep_best=name)
    assert find_conflicts(config) == []
    assert config.finetune is not None
    job = made_up_job(config, config.finetune, tmp_path)
    order = GlobalOrder(1280, config.finetune.global_batch_size, seed=0)
    measured = {
        "val_mIoU": [0.2, 0.5, 0.3, 0.4],
        "val_mIoU_ema": [0.6, 0.5, 0.3, 0.4],
        "val_loss": [1.0, 3.0, 2.0, 4.0],
        "loss": [3.0, 1.0, 2.0, 4.0],
    }
    for step in range(1, 5):
        notes = {"metrics": {key: values[step - 1] for key, values in measured.items()}}
        publish(tmp_path, step, lambda folder: {"w": durable.write(folder / "w", [b"w"])}, notes)
    prune(tmp_path, job.keep_policy(Plan.of(job.recipe, order)))
    # The best one beside the last two.
    assert [step_of(path) for path in steps(tmp_path)] == [best, 3, 4]


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are() -> None:
    (problem,) = find_conflicts(config_with(keep_best="val_top1"))
    assert problem == (
        "finetune.keep_best: 'val_top1' is not measured in this training; loss, val_mIoU, "
        "val_loss, val_mIoU_ema or val_loss_ema would work"
    )
    (problem,) = find_conflicts(config_with(keep_best="val_mIoU_ema", ema_decay=None))
    assert problem.endswith("loss, val_mIoU or val_loss would work, or set ema_decay")
