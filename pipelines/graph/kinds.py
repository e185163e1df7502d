"""The kinds of stages: one record each, with all that others need to know of a stage.

A stage is one file in `pipelines/stages` and its record here. The outline of a pipeline, the
commands, the titles on the report, what is asked of images and of given weights, and the closing
table read the records. Nothing heavy is imported: the code of a stage is loaded when it is built.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from pipelines.config import PipelineConfig, Section


@dataclass(frozen=True, kw_only=True)
class StageKind:
    """What is known of a stage without running it.

    Args:
        name: Of its folder, and of its command if it has one.
        title: On the report; in lower case, in the closing table.
        build: The function that makes the stage of a `pipelines.stages.StageSetup`, as
            "module:function".
        section: Dotted name of its settings. A configuration where they are None has no such stage.
        enabled: What else a configuration must say for the stage to be there.
        images: The stage whose images it reads.
        starts_from: Stages whose weights it may start from; it reads the first that is there.
        evaluates: The stage whose model it evaluates; without that one it is not there.
        reads_all: Whether it reads all other stages. It runs last.
        trains: Whether its section is a recipe of training, so that it leaves curves.
        needs_labels: Splits whose images must have labels.
        baseline_of: The stage that is compared with it: it trains with the same recipe, but
            always from scratch.
        help: Of the command with its name; without it there is no such command.
        example: Options of that command, as its help shows them.
        part_of: Other commands that bring the stage about.
    """

    name: str
    title: str
    build: str
    section: str = ""
    enabled: Callable[[PipelineConfig], bool] = lambda config: True
    images: str = ""
    starts_from: tuple[str, ...] = ()
    evaluates: str = ""
    reads_all: bool = False
    trains: bool = False
    needs_labels: tuple[Literal["train", "val"], ...] = ()
    baseline_of: str = ""
    help: str = ""
    example: str = "--preset imagenet1k --data /data/imagenet"
    part_of: tuple[str, ...] = ()

    def settings(self, config: PipelineConfig) -> Section | None:
        """Its section of a configuration; the whole of it for a stage without a section."""
        found: Section | None = config
        for name in self.section.split(".") if self.section else ():
            found = getattr(found, name, None)
        return found

    def is_in(self, config: PipelineConfig) -> bool:
        """Whether a configuration asks for the stage."""
        return self.settings(config) is not None and self.enabled(config)

    def inputs(self, there: Collection[str]) -> tuple[str, ...]:
        """Which of the stages that are `there` it reads."""
        if self.reads_all:
            return tuple(there)
        start = next((name for name in self.starts_from if name in there), "")
        return tuple(name for name in (self.images, start, self.evaluates) if name)


def _has_baseline(config: PipelineConfig) -> bool:
    return config.finetune is not None and config.finetune.scratch_baseline


KINDS = {
    kind.name: kind
    for kind in (
        StageKind(
            name="write",
            title="Writing data",
            build="pipelines.stages.images:build",
            section="data",
        ),
        # Before anything is trained, so that what is wrong with the images is said before.
        StageKind(
            name="write-intermediate",
            title="Writing intermediate data",
            build="pipelines.stages.images:build",
            section="intermediate.data",
        ),
        StageKind(
            name="pretrain",
            title="Pretraining",
            build="pipelines.stages.pretrain:build",
            section="pretrain",
            images="write",
            trains=True,
            help="pretrain with FCMAE (and write the data first, if need be)",
        ),
        StageKind(
            name="knn",
            title="Nearest neighbours",
            build="pipelines.stages.knn:build",
            section="knn",
            images="write",
            starts_from=("pretrain",),
            needs_labels=("train", "val"),
            help="classify by nearest neighbours of the pretrained encoder's features",
            example="--preset knn-atto --data /data/imagenet",
        ),
        StageKind(
            name="linear-probe",
            title="Linear probe",
            build="pipelines.stages.finetune:build",
            section="linear_probe",
            images="write",
            starts_from=("pretrain",),
            trains=True,
            needs_labels=("train",),
            help="train a linear classifier of those features and evaluate it",
            example="--preset linear-probe-atto --data /data/imagenet",
        ),
        StageKind(
            name="intermediate",
            title="Intermediate fine-tuning",
            build="pipelines.stages.finetune:build",
            section="intermediate",
            images="write-intermediate",
            starts_from=("pretrain",),
            trains=True,
            needs_labels=("train",),
            help="fine-tune the pretrained encoder on another, larger collection",
            example="--preset imagenet22k-nano --data /data/imagenet "
            "--set intermediate.data.source=/data/imagenet22k",
        ),
        StageKind(
            name="finetune",
            title="Fine-tuning",
            build="pipelines.stages.finetune:build",
            section="finetune",
            images="write",
            starts_from=("intermediate", "pretrain"),
            trains=True,
            needs_labels=("train",),
            help="fine-tune the pretrained encoder (and the baseline, if the preset has one)",
        ),
        StageKind(
            name="finetune-scratch",
            title="Fine-tuning from scratch",
            build="pipelines.stages.finetune:build",
            section="finetune",
            enabled=_has_baseline,
            images="write",
            trains=True,
            needs_labels=("train",),
            baseline_of="finetune",
            part_of=("finetune",),
        ),
        StageKind(
            name="evaluate",
            title="Evaluation",
            build="pipelines.stages.evaluate:build",
            section="evaluate",
            images="write",
            evaluates="finetune",
            needs_labels=("val",),
            help="evaluate what was fine-tuned on the validation split",
        ),
        StageKind(
            name="evaluate-scratch",
            title="Evaluation from scratch",
            build="pipelines.stages.evaluate:build",
            section="evaluate",
            images="write",
            evaluates="finetune-scratch",
            needs_labels=("val",),
            part_of=("evaluate",),
        ),
        StageKind(
            name="evaluate-linear-probe",
            title="Evaluation of the linear probe",
            build="pipelines.stages.evaluate:build",
            section="evaluate",
            images="write",
            evaluates="linear-probe",
            needs_labels=("val",),
            part_of=("evaluate", "linear-probe"),
        ),
        StageKind(
            name="report",
            title="Report",
            build="pipelines.stages.report:build",
            reads_all=True,
            help="render the report page of what is there; trains nothing",
        ),
    )
}
"""By name, in the order the stages run."""


def training_sections() -> list[str]:
    """The sections that are recipes of training."""
    return list(dict.fromkeys(kind.section for kind in KINDS.values() if kind.trains))


def stage_commands() -> Iterator[StageKind]:
    """The kinds that have a command of their own."""
    return (kind for kind in KINDS.values() if kind.help)


def title_of(stage: str) -> str:
    """What people call a stage: its name, where no record knows it."""
    return KINDS[stage].title if stage in KINDS else stage
