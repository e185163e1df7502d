"""The stages of a pipeline, in the order they run."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.config import PipelineConfig
from pipelines.graph import Stage
from pipelines.session import Session
from pipelines.stages.evaluate import evaluate_stage
from pipelines.stages.finetune import SCRATCH, finetune_stage
from pipelines.stages.pretrain import pretrain_stage
from pipelines.stages.report import report_stage
from pipelines.stages.write_data import write_stage


def build_stages(
    config: PipelineConfig, source: Path, session: Session, command: Sequence[str]
) -> list[Stage]:
    """write, pretrain, finetune, evaluate, report; with the control's two stages if wanted.

    Raises:
        DataError: When `source` holds nothing usable.
    """
    assert config.finetune is not None
    trained = ["finetune"] + ([SCRATCH] if config.finetune.control else [])
    return [
        write_stage(config, source, session),
        pretrain_stage(config, session),
        *(finetune_stage(config, session, from_scratch=name == SCRATCH) for name in trained),
        *(evaluate_stage(config, session, of=name) for name in trained),
        report_stage(config, session, command, trained),
    ]
