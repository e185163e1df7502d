"""The stages of a pipeline, in the order they run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from convnextv2.data.collection import DataError
from pipelines.config import DataConfig, PipelineConfig
from pipelines.graph import Stage
from pipelines.outline import EVALUATIONS, outline
from pipelines.session import Session
from pipelines.stages.data_conflicts import find_data_conflicts
from pipelines.stages.evaluate import evaluate_stage
from pipelines.stages.finetune import SECTIONS, finetune_stage
from pipelines.stages.knn import knn_stage
from pipelines.stages.pretrain import pretrain_stage
from pipelines.stages.report import report_stage
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
            conflicts = partial(find_data_conflicts, config, name, wanted, folder)
            return write_stage(data, folder, session, name=name, find_conflicts=conflicts)
        if name in SECTIONS:
            return finetune_stage(config, session, name)
        if name in EVALUATIONS:
            return evaluate_stage(config, session, name)
        if name == "report":
            return report_stage(config, session, command)
        return {"pretrain": pretrain_stage, "knn": knn_stage}[name](config, session)

    return [build(name) for name in outline(config) if name in wanted]


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
