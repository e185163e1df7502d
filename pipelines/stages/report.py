"""Stage `report`: gathers what the stages left and writes the page."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convnextv2 import weights
from convnextv2.analysis.reconstruct import Reconstruction, reconstruct
from convnextv2.data.load import BetonLoader
from convnextv2.data.manifest import read_manifest
from convnextv2.data.shards import open_shards
from convnextv2.masking import sample_masks
from pipelines.config import PipelineConfig
from pipelines.files import atomically
from pipelines.graph import COMPLETE, Outputs, Place, Stage, hash_files
from pipelines.metrics import read_spool
from pipelines.provenance import git_commit, versions
from pipelines.report import PRETRAINED, SCRATCH, ReportInput, StageRow, render_report
from pipelines.samples import count, training_samples
from pipelines.scores import Evaluation
from pipelines.session import Session
from pipelines.stages import evaluate, pretrain
from pipelines.stages.pretrain import build_fcmae
from pipelines.tracking import open_hint
from pipelines.views import evaluation_view

PAGE = "report.html"
TEMPLATES = Path(__file__).parent.parent
TEMPLATE_FILES = ("report.html.j2", "report.css.j2")
SAMPLES = 8


def report_stage(
    config: PipelineConfig, session: Session, command: Sequence[str], trained: Sequence[str]
) -> Stage:
    """The page over everything that ran; `trained` are the fine-tuning stages."""

    def run(place: Place) -> Outputs:
        with session.attempt(place) as run:
            data = gather(place, config, command, session.tracking_uri)
            with atomically(place.directory / PAGE) as partial:
                partial.write_text(render_report(data))
            session.tracker.artifact(run, place.directory / PAGE)
            # On the pipeline's own run too, where people look first.
            session.tracker.artifact(config.name, place.directory / PAGE)
        return hash_files(place.directory, PAGE)

    evaluated = [name.replace("finetune", "evaluate") for name in trained]
    return Stage(
        name="report",
        run=run,
        settings={"title": config.name, "template": hash_files(TEMPLATES, *TEMPLATE_FILES)},
        after=("write", "pretrain", *trained, *evaluated),
        code=(
            "convnextv2.analysis",
            "pipelines.figures",
            "pipelines.metrics",
            "pipelines.pages",
            "pipelines.report",
            "pipelines.scores",
            "pipelines.stages.report",
        ),
    )


def gather(
    place: Place, config: PipelineConfig, command: Sequence[str], tracking_uri: str
) -> ReportInput:
    """Read the outputs of the stages before."""
    evaluations = {
        SCRATCH if name.endswith("scratch") else PRETRAINED: Evaluation(
            **json.loads((directory / evaluate.RESULT).read_text())
        )
        for name, directory in place.inputs.items()
        if name.startswith("evaluate")
    }
    train = place.inputs["write"] / "train"
    assert config.pretrain is not None
    assert config.finetune is not None
    return ReportInput(
        title=config.name,
        command=shlex.join(command),
        config=config.model_dump(mode="json"),
        stages=[
            StageRow(name=name, seconds=_seconds(directory), status="run")
            for name, directory in place.inputs.items()
        ],
        spools={
            name: read_spool(directory)
            for name, directory in place.inputs.items()
            if name.startswith(("pretrain", "finetune"))
        },
        evaluations=evaluations,
        labelled_images=count(training_samples(train, config.finetune, config.seed)),
        reconstruction=pictures(place, config),
        versions=versions(),
        commit=git_commit(),
        facts={
            "workers": config.cluster.num_workers,
            "ZeRO stage": config.cluster.zero.stage,
            "precision": config.cluster.dtype,
            "sparse backend": config.pretrain.backend,
            "unlabelled images": count(training_samples(train, config.pretrain, config.seed)),
        },
        mlflow_hint=open_hint(tracking_uri),
    )


def pictures(place: Place, config: PipelineConfig) -> Reconstruction:
    """Reconstruct validation images, one of each class as far as they go."""
    folder = place.inputs["write"] / "val"
    model = build_fcmae(config)
    weights.load(model, weights.read(place.inputs["pretrain"] / pretrain.WEIGHTS))
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
    return reconstruct(model, batch.images, mask)


def _seconds(directory: Path) -> float:
    seconds: float = json.loads((directory / COMPLETE).read_text())["seconds"]
    return seconds
