"""A whole configuration as YAML: `config.yaml` in a run folder, and what `--config` reads."""

from pathlib import Path

import yaml

from pipelines.config import PipelineConfig

CONFIG = "config.yaml"
"""In a run folder: the settings of the last command that ran stages there."""


def as_yaml(config: PipelineConfig) -> str:
    """Every setting in the order of the fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_config(path: Path, option: str = "--config") -> dict[str, object]:
    """The settings that a file holds; whether they are right is not looked at.

    `option` is what the file was given by, for messages.

    Raises:
        ValueError: When there is no such file, it is no YAML of `key: value`, or has a key twice.
    """
    try:
        text = path.read_text()
        settings = yaml.safe_load(text)
        repeated = _repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader))
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ValueError(f"{option} {path} is no YAML: {where}") from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"{option} {path}: expected lines of `key: value`, as `convnextv2 presets demo` prints"
        )
    if repeated:
        raise ValueError(f"{option} {path}: {'; '.join(repeated)}; keep one of each")
    return settings


def _repeated_keys(node: yaml.Node | None, inside: str = "") -> list[str]:
    """Where a key is given again, of which PyYAML would silently take the last."""
    found = []
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = f"{inside}{key.value}", key.start_mark.line + 1
            if name in lines:
                found.append(f"line {line}: {name} is already on line {lines[name]}")
            lines.setdefault(name, line)
            found += _repeated_keys(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found += _repeated_keys(value, f"{inside}{index}.")
    return found
