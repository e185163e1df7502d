"""Stage `report`: gathers what the stages left and writes the page."""

import json
import shlex
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.resilience import incidents
from convnextv2 import weights
from convnextv2.analysis.reconstruct import Reconstruction, reconstruct
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import open_shards
from convnextv2.durable import atomically
from convnextv2.fcmae.masking import sample_masks
from pipelines.config import DataConfig, PipelineConfig, TrainConfig
from pipelines.graph import COMPLETE, Outputs, Stage, StageContext, digest_of, hash_files
from pipelines.graph.kinds import KINDS, title_of
from pipelines.graph.outline import outline
from pipelines.report import html
from pipelines.report.page import ReportInput, render_report
from pipelines.report.tables import NEIGHBOURS, PRETRAINED, PROBE, SCRATCH
from pipelines.report.times import StageRow
from pipelines.results import MetricSpec, find_result
from pipelines.runtime.drivers import read_spans
from pipelines.runtime.events import EVENTS_FILE, read_events
from pipelines.runtime.goodput import account_of
from pipelines.runtime.provenance import git_commit, versions
from pipelines.runtime.session import Session
from pipelines.runtime.tracking import open_hint
from pipelines.stages import pretrain
from pipelines.stages.finetune import recipe_of
from pipelines.stages.pretrain import build_fcmae
from pipelines.stages.setup import Gaps, StageSetup
from pipelines.training.data.samples import count, training_samples
from pipelines.training.data.transforms import evaluation_view

PAGE = "report.html"
TEMPLATE_FILES = ("report.html.j2", "report.css.j2")
SAMPLES = 8


def build(setup: StageSetup) -> Stage:
    """The page over everything that ran; without gaps that is every stage."""
    config, session, gaps = setup.config, setup.session, setup.gaps
    settings: dict[str, Any] = {
        "title": config.name,
        # Short, for a person reads it where it is said what has changed.
        "template": digest_of(hash_files(html.TEMPLATES, *TEMPLATE_FILES))[:8],
    }
    if gaps is not None:
        settings |= {
            "missing": dict(gaps.why),
            "half done": {
                name: hash_files(directory, EVENTS_FILE)
                for name, directory in gaps.half_done.items()
                if (directory / EVENTS_FILE).exists()
            },
        }

    def run(context: StageContext) -> Outputs:
        session.release_workers()
        with session.attempt(context) as run:
            data = gather(context, config, setup.command, session, gaps)
            with atomically(context.directory / PAGE) as partial:
                partial.write_text(render_report(data))
            session.tracker.artifact(run, context.directory / PAGE)
            # On the pipeline's own run too, where people look first.
            session.tracker.artifact(session.tracked_as, context.directory / PAGE)
        return hash_files(context.directory, PAGE)

    return Stage(
        name=setup.kind.name,
        run=run,
        settings=settings,
        depends_on=setup.depends_on,
        code=(gather, render_report),
    )


def gather(
    context: StageContext,
    config: PipelineConfig,
    command: Sequence[str],
    session: Session,
    gaps: Gaps | None = None,
) -> ReportInput:
    """Read the outputs of the stages before."""
    inputs = context.inputs
    found = {
        name: result
        for name, directory in inputs.items()
        if (result := find_result(directory)) is not None
    }
    begun = {**inputs, **(gaps.half_done if gaps else {})}
    statuses = {
        stage_result.context.stage.name: stage_result.status
        for stage_result in session.stage_results
    }
    event_logs = {
        name: read_events(directory) for name, directory in begun.items() if KINDS[name].trains
    }
    faults = [each for each in incidents.read(session.run_dir) if each.stage in event_logs]
    return ReportInput(
        title=config.name,
        command=shlex.join(command),
        config=config.model_dump(mode="json"),
        stages=[
            _stage_row(name, directory, statuses.get(name, "done"))
            for name, directory in inputs.items()
        ],
        event_logs=event_logs,
        accounts={
            name: account_of(name, events, read_spans(begun[name]), faults)
            for name, events in event_logs.items()
        },
        incidents=faults,
        measured={name: _measured(config, name) for name in event_logs},
        results={model_of(config, name): result for name, result in found.items()},
        pictures=[
            (picture.title, (inputs[name] / picture.file).read_bytes())
            for name, result in found.items()
            for picture in result.pictures
        ],
        labelled_images=_labelled_images(context, config),
        reconstruction=pictures(context, config) if "pretrain" in inputs else None,
        versions=versions(),
        commit=git_commit(),
        facts=_facts(context, config),
        mlflow_hint=open_hint(session.tracking_uri),
        pretraining=pretraining_of(config, inputs),
        missing=gaps.why if gaps else {},
        whole_command=gaps.whole_command if gaps else "",
        # The last, so that what it took to gather the rest is in it.
        wall_seconds=time.time() - session.began,
    )


def model_of(config: PipelineConfig, stage: str) -> str:
    """What the report calls the model of a stage's result: without any pretraining a fine-tuned one
    is from scratch.
    """
    if stage == "knn":
        return NEIGHBOURS
    trained = KINDS[stage].evaluates
    if not trained:
        return title_of(stage)
    if trained == "linear-probe":
        return PROBE
    kind = KINDS[trained]
    alone = outline(config)[trained] == (kind.images,)
    given = not kind.baseline_of and recipe_of(config, trained).weights is not None
    return SCRATCH if alone and not given else PRETRAINED


def _precision(config: PipelineConfig) -> str:
    """The recipes' one precision, or that of each."""
    dtypes = {name: recipe.dtype for name, recipe in config if isinstance(recipe, TrainConfig)}
    if len(set(dtypes.values())) == 1:
        return dtypes.popitem()[1]
    return ", ".join(f"{dtype} ({name})" for name, dtype in dtypes.items())


def pretraining_of(config: PipelineConfig, done: Collection[str]) -> str:
    """Words for what came before the models that are evaluated, of the stages that are done."""
    sections = (config.intermediate, config.finetune, config.linear_probe, config.knn)
    given = any(section is not None and section.weights is not None for section in sections)
    steps = {
        "the given pretraining": given,
        "FCMAE pretraining": "pretrain" in done,
        "intermediate fine-tuning": "intermediate" in done,
    }
    return " with ".join(words for words, there in steps.items() if there)


def _measured(config: PipelineConfig, stage: str) -> tuple[MetricSpec, ...]:
    """What a stage that trains measures on the way."""
    kind = KINDS[stage]
    recipe, data = kind.settings(config), KINDS[kind.images].settings(config)
    assert isinstance(recipe, TrainConfig)
    assert isinstance(data, DataConfig)
    return tuple(recipe.measured(data).values())


def _labelled_images(context: StageContext, config: PipelineConfig) -> int:
    """How many images the classifiers that are evaluated were trained on."""
    recipe = config.finetune or config.linear_probe
    if recipe is None or not any(KINDS[name].evaluates for name in context.inputs):
        return 0
    return count(training_samples(context.inputs["write"] / "train", recipe, config.seed))


def _facts(context: StageContext, config: PipelineConfig) -> dict[str, object]:
    facts: dict[str, object] = {
        "workers": config.cluster.most_workers,
        "ZeRO stage": config.cluster.zero.stage,
        "precision": _precision(config),
    }
    if config.pretrain is not None and "pretrain" in context.inputs:
        images = training_samples(context.inputs["write"] / "train", config.pretrain, config.seed)
        facts |= {"sparse backend": config.pretrain.backend, "unlabelled images": count(images)}
    return facts


def pictures(context: StageContext, config: PipelineConfig) -> Reconstruction:
    """Reconstruct validation images, one of each class as far as they go."""
    folder = context.inputs["write"] / "val"
    assert config.pretrain is not None
    model = build_fcmae(config.model, config.pretrain)
    weights.load(model, weights.read(context.inputs["pretrain"] / pretrain.WEIGHTS))
    labels = open_shards(folder, read_manifest(folder)).labels()
    _, first_of_class = np.unique(labels, return_index=True)
    others = np.setdiff1d(np.arange(len(labels)), first_of_class)
    chosen = np.append(first_of_class, others)[:SAMPLES].astype(np.uint64)
    view = evaluation_view(config.model.image_size, config.evaluate)
    (batch,) = BetonLoader(folder, batch_size=len(chosen), view=view).batches(chosen)
    mask = sample_masks(
        seed=config.seed,
        epoch=0,
        indices=batch.indices,
        num_patches=model.grid[0] * model.grid[1],
        mask_ratio=model.mask_ratio,
    )
    trained_on = read_manifest(folder.with_name("train"))
    return reconstruct(model, batch.images, mask, trained_on.normalization)


def _stage_row(name: str, directory: Path, status: str) -> StageRow:
    complete = _read(directory / COMPLETE)
    return StageRow(
        name=name, seconds=complete["seconds"], status=status, finished=complete["finished"]
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
