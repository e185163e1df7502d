"""Stage `report`: gathers what the stages left and writes the page."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convnextv2 import weights
from convnextv2.analysis.reconstruct import Reconstruction, reconstruct
from convnextv2.data.load import BetonLoader
from convnextv2.data.views import CenterView
from convnextv2.data.write import read_manifest
from convnextv2.masking import sample_masks
from pipelines.config import PipelineConfig
from pipelines.files import atomically
from pipelines.graph import COMPLETE, Outputs, Place, Stage, hash_files
from pipelines.metrics import read_spool
from pipelines.provenance import git_commit, versions
from pipelines.report import PRETRAINED, SCRATCH, ReportInput, StageRow, render_report
from pipelines.samples import read_labels, training_samples
from pipelines.scores import Evaluation
from pipelines.session import Session
from pipelines.stages import evaluate, pretrain
from pipelines.stages.pretrain import build_fcmae
from pipelines.tracking import open_hint

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
    train = place.inputs["write"] / "train.beton"
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
        labelled_images=len(training_samples(train, config.finetune, config.seed)),
        reconstruction=pictures(place, config),
        versions=versions(),
        commit=git_commit(),
        facts={
            "workers": config.cluster.num_workers,
            "ZeRO stage": config.cluster.zero_stage,
            "precision": config.cluster.dtype,
            "sparse backend": config.pretrain.backend,
            "unlabelled images": len(training_samples(train, config.pretrain, config.seed)),
        },
        mlflow_hint=open_hint(tracking_uri),
    )


def pictures(place: Place, config: PipelineConfig) -> Reconstruction:
    """Reconstruct validation images, one of each class as far as they go."""
    beton = place.inputs["write"] / "val.beton"
    model = build_fcmae(config)
    weights.load(model, weights.read(place.inputs["pretrain"] / pretrain.WEIGHTS))
    usable = read_manifest(beton).usable
    _, first_of_class = np.unique(read_labels(beton)[usable], return_index=True)
    others = np.setdiff1d(np.arange(len(usable)), first_of_class)
    chosen = usable[np.append(first_of_class, others)[:SAMPLES]]
    side = config.model.image_size
    view = CenterView(size=(side, side), crop=config.evaluate.crop)
    (batch,) = BetonLoader(beton, batch_size=len(chosen), view=view).batches(chosen)
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
