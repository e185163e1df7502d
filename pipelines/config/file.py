"""A whole configuration as YAML: `config.yaml` in a run folder, and what `--config` reads."""

from pathlib import Path

import yaml

from pipelines.config import PipelineConfig

CONFIG = "config.yaml"
"""In a run folder: the settings of the last command that ran stages there."""


def as_yaml(config: PipelineConfig) -> str:
    """Every setting in the order of the fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_config(path: Path) -> dict[str, object]:
    """The settings that a file holds; whether they are right is not looked at.

    Raises:
        ValueError: When there is no such file, or it is no YAML of `key: value`.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ValueError(f"--config {path} is no YAML: {where}") from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"--config {path}: expected lines of `key: value`, as `convnextv2 presets demo` prints"
        )
    return settings
