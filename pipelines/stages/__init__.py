"""The stages of a pipeline, built from their records. What a stage runs is imported with it."""

from pipelines.stages.building import build_stages, stages_of_report
from pipelines.stages.setup import Gaps, StageSetup

__all__ = ["Gaps", "StageSetup", "build_stages", "stages_of_report"]
