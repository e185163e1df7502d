"""The stages of a pipeline, in the order they run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from convnextv2.data.collection import DataError
from pipelines.config import DataConfig, PipelineConfig
from pipelines.config.resolve import refuse
from pipelines.graph import Pipeline, Stage
from pipelines.graph.outline import EVALUATIONS, outline
from pipelines.runtime.session import Session
from pipelines.stages.data_conflicts import find_data_conflicts
from pipelines.stages.evaluate import evaluate_stage
from pipelines.stages.finetune import SECTIONS, finetune_stage
from pipelines.stages.given_shards import find_shards_conflicts, holds_shards, shards_stage
from pipelines.stages.knn import knn_stage
from pipelines.stages.pretrain import pretrain_stage
from pipelines.stages.report import Gaps, report_stage
from pipelines.stages.write_data import write_stage


def build_stages(
    config: PipelineConfig,
    source: Path,
    session: Session,
    command: Sequence[str],
    wanted: set[str],
) -> list[Stage]:
    """Those of the configuration's stages that are `wanted`; what they need is among them.

    Raises:
        DataError: When `source` (or the intermediate step's own) holds nothing usable.
        ConfigError: When shards that are there do not go with the settings.
    """

    def build(name: str) -> Stage:
        if name.startswith("write"):
            data, folder = _images(config, source, name)
            if holds_shards(folder):
                return shards_stage(folder, name)
            conflicts = partial(find_data_conflicts, config, name, wanted, folder)
            return write_stage(
                data,
                folder,
                session,
                name=name,
                channels=config.model.in_channels,
                find_conflicts=conflicts,
            )
        if name in SECTIONS:
            return finetune_stage(config, session, name)
        if name in EVALUATIONS:
            return evaluate_stage(config, session, name)
        if name == "report":
            return report_stage(config, session, command)
        return {"pretrain": pretrain_stage, "knn": knn_stage}[name](config, session)

    refuse(find_shards_conflicts(config, wanted, source), "the settings, for the shards given")
    return [build(name) for name in outline(config) if name in wanted]


def stages_of_report(
    config: PipelineConfig,
    source: Path,
    session: Session,
    command: Sequence[str],
    *,
    whole_command: str,
) -> list[Stage]:
    """The stages that are done as configured, and the report of them and of what is half done.

    Raises:
        ValueError: When nothing is there.
    """
    built: list[Stage] = []
    why: dict[str, str] = {}
    for name in outline(config):
        if name != "report":
            try:
                # By itself: what other stages would need of the images does not matter here.
                built += build_stages(config, source, session, command, {name})
            except (ValueError, RuntimeError, OSError) as error:  # Images or weights are gone.
                why[name] = str(error)
    survey = Pipeline(session.run_dir, built, say=session.screen.note).survey()
    why |= survey.missing
    if not survey.done and not survey.half_done:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in why.items())
        raise ValueError(
            f"there is nothing to report of {config.name} in {session.run_dir}:{reasons}\n"
            f"This makes it all: {whole_command}"
        )
    if why:
        session.screen.note(f"not there: {', '.join(why)}; this makes it all: {whole_command}")
    gaps = Gaps(
        why={name: why[name] for name in outline(config) if name in why},
        half_done={name: context.directory for name, context in survey.half_done.items()},
        whole_command=whole_command,
    )
    report = report_stage(config, session, command, gaps if why else None)
    return [*(stage for stage in built if stage.name in survey.done), report]


def _images(config: PipelineConfig, source: Path, name: str) -> tuple[DataConfig, Path]:
    """What the stage `name` writes, and where that is."""
    if name == "write":
        return config.data, source
    assert config.intermediate is not None
    data = config.intermediate.data
    if data.source is None:
        raise DataError(
            "no data for the intermediate fine-tuning: give --set intermediate.data.source=DIR"
        )
    return data, data.source
