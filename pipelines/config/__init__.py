"""The typed configuration tree of a pipeline. Presets fill it, `--set a.b=c` changes it.

All problems are found at once and shown on one screen, before Ray or a GPU is touched: unknown
keys with the nearest name, wrong types, and arithmetic that does not work out with values that
would. Nothing heavy is imported here.
"""

from pipelines.config.data import AugmentConfig, DataConfig, WriteConfig
from pipelines.config.pipeline import (
    ClusterConfig,
    EvaluateConfig,
    ModelConfig,
    PipelineConfig,
    TrackingConfig,
)
from pipelines.config.section import Section
from pipelines.config.training import (
    FinetuneConfig,
    IntermediateConfig,
    KnnConfig,
    PretrainConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "ClusterConfig",
    "DataConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "IntermediateConfig",
    "KnnConfig",
    "ModelConfig",
    "PipelineConfig",
    "PretrainConfig",
    "Section",
    "TrackingConfig",
    "TrainConfig",
    "WriteConfig",
]
