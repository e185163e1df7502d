"""Presets: one function per recipe, returning a full configuration."""

from collections.abc import Callable, Sequence

from pipelines.config import PipelineConfig
from pipelines.presets.demo import demo
from pipelines.presets.imagenet1k import imagenet1k
from pipelines.resolve import ConfigError, nearest, resolve

PRESETS: dict[str, Callable[[], PipelineConfig]] = {"demo": demo, "imagenet1k": imagenet1k}

__all__ = ["PRESETS", "ConfigError", "load_preset"]


def load_preset(name: str, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Resolve a preset with `a.b=c` overrides (values as in YAML).

    Raises:
        ConfigError: Naming every problem of the overrides and of the arithmetic at once.
    """
    if name not in PRESETS:
        raise ConfigError([f"unknown preset {name!r}{nearest(name, list(PRESETS))}"])
    return resolve(PRESETS[name](), overrides)
