"""Which stages a configuration has, what each reads, and what commands ask for. Imports nothing
heavy: a stage that is not there is said in the first second.
"""

from collections.abc import Mapping, Sequence

from pipelines.config import PipelineConfig
from pipelines.graph.pipeline import needed_for

SCRATCH = "finetune-scratch"
EVALUATIONS = {
    "evaluate": "finetune",
    "evaluate-scratch": SCRATCH,
    "evaluate-linear-probe": "linear-probe",
}
"""Stages that evaluate, and those that trained what they evaluate."""

Outline = Mapping[str, tuple[str, ...]]


def outline(config: PipelineConfig) -> Outline:
    """Names of the stages in the order they run, each with those whose outputs it reads."""
    stages: dict[str, tuple[str, ...]] = {"write": ()}
    start: tuple[str, ...] = ()  # Where fine-tuning gets its weights from.
    if config.intermediate is not None:
        # Before anything is trained, so that what is wrong with the images is said before.
        stages["write-intermediate"] = ()
    if config.pretrain is not None:
        stages["pretrain"] = ("write",)
        start = ("pretrain",)
    if config.knn is not None:
        stages["knn"] = ("write", *start)
    if config.linear_probe is not None:
        stages["linear-probe"] = ("write", *start)
    if config.intermediate is not None:
        stages["intermediate"] = ("write-intermediate", *start)
        start = ("intermediate",)
    if config.finetune is not None:
        stages["finetune"] = ("write", *start)
        if config.finetune.scratch_baseline:
            stages[SCRATCH] = ("write",)
    for evaluated, trained in EVALUATIONS.items():
        if trained in stages:
            stages[evaluated] = ("write", trained)
    return {**stages, "report": tuple(stages)}


def wanted_stages(config: PipelineConfig, until: Sequence[str] = ()) -> set[str]:
    """The stages `until` (all of them, without) and all that these need."""
    stages = outline(config)
    return {name for each in until or stages for name in needed_for(each, stages)}


def stages_of_command(command: str, config: PipelineConfig) -> list[str]:
    """The stages a command of the command line is to bring about.

    Raises:
        ValueError: When the configuration has none of them; naming the commands that have.
    """
    there = outline(config)

    def found(name: str) -> list[str]:
        wanted = {
            "finetune": ["finetune", SCRATCH],
            "linear-probe": ["evaluate-linear-probe"],
            "evaluate": list(EVALUATIONS),
        }
        return [stage for stage in wanted.get(name, [name]) if stage in there]

    if not found(command):
        known = ("pretrain", "knn", "linear-probe", "intermediate", "finetune", "evaluate")
        has = [name for name in known if found(name)]
        raise ValueError(
            f"{config.name} has no stage {command!r}; it has {', '.join(has)} and report "
            f"(convnextv2 presets lists recipes that may have it)"
        )
    return found(command)
