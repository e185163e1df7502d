"""From a preset or a file, with `a.b=c` overrides, to a checked configuration.

Everything that is wrong is told at once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.config import PipelineConfig
from pipelines.config.checks import find_conflicts
from pipelines.config.file import read_config
from pipelines.config.hints import hint, section
from pipelines.config.section import KINDS

Wanted = Callable[[PipelineConfig], set[str]]
"""The stages of a configuration that are to run."""
_FINISHED = "train/manifest.json"
"""What a folder of finished shards has."""


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one problem per line.

    `about` says what was looked at: the settings alone, or with the images they are for.
    """

    def __init__(self, problems: Sequence[str], about: str = "the settings") -> None:
        self.problems, self.about = list(problems), about
        super().__init__("\n".join(self.problems))


def refuse(problems: Sequence[str], about: str = "the settings") -> None:
    """Raise ConfigError with the problems, if there are any."""
    if problems:
        raise ConfigError(problems, about)


def resolve(
    preset: PipelineConfig, overrides: Sequence[str], wanted: Wanted | None = None
) -> PipelineConfig:
    """Apply `overrides` (values as in YAML) and check everything.

    That includes the shards that are given as data, for the stages that are `wanted` of the
    resolved configuration; without it nothing will run, and they are not looked at.

    Raises:
        ConfigError: Naming every problem at once.
    """
    base = preset.model_dump()
    return _resolve(base, base, overrides, wanted, "the settings", type(preset))


def resolve_file(
    path: Path, overrides: Sequence[str] = (), wanted: Wanted | None = None
) -> PipelineConfig:
    """Likewise, of a YAML file with settings; those that it leaves out have their defaults.

    Raises:
        ConfigError: Naming every problem at once.
        ValueError: When the file cannot be read.
    """
    about = f"{path}, with what --set changes in it" if overrides else str(path)
    return _resolve(read_config(path), {}, overrides, wanted, about)


def _resolve(
    settings: dict[str, object],
    base: dict[str, object],
    overrides: Sequence[str],
    wanted: Wanted | None,
    about: str,
    schema: type[PipelineConfig] = PipelineConfig,
) -> PipelineConfig:
    merged, problems = settings, []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            problems.append(f"--set {override}: expected key=value, for example seed=1")
            continue
        merged = _with_value(merged, key.split("."), _parse(text))
    config, wrong = _validate(merged, base, schema)
    if config is None:
        raise ConfigError([*problems, *wrong], about)
    problems += wrong + find_conflicts(config) + _weight_problems(config)
    if wanted is not None and _names_shards(config):
        # Here, for it imports PyTorch, which those who give photographs need not wait for.
        from pipelines.stages.given_shards import find_shards_conflicts

        problems += find_shards_conflicts(config, wanted(config))
    refuse(list(dict.fromkeys(problems)), about)
    return config


def _names_shards(config: PipelineConfig) -> bool:
    sources = [config.data.source]
    if config.intermediate is not None:
        sources.append(config.intermediate.data.source)
    return any(source is not None and (source / _FINISHED).exists() for source in sources)


def _weight_problems(config: PipelineConfig) -> list[str]:
    if not any(getattr(section, "weights", None) for section in config.sections().values()):
        return []
    # Here, for it imports PyTorch, which those who name no weights need not wait for.
    from pipelines.training.weights.given import find_problems

    return find_problems(config)


def _with_value(tree: dict[str, object], path: list[str], value: object) -> dict[str, object]:
    """A copy of `tree` with one leaf changed; unknown branches are made, validation names them."""
    head, *rest = path
    if not rest:
        return {**tree, head: value}
    below = tree.get(head)
    return {**tree, head: _with_value(below if isinstance(below, dict) else {}, rest, value)}


def _parse(text: str) -> object:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        # YAML 1.1 takes 1e-3 for text; people mean a number, unless they put it in quotes.
        try:
            return float(text)
        except ValueError:
            return value
    return value


def _validate(
    merged: dict[str, object], base: dict[str, object], schema: type[PipelineConfig]
) -> tuple[PipelineConfig | None, list[str]]:
    """Validate; in the place of a wrong value stands that of `base`, or else the field's default.

    So all checks can run. There is no configuration where a field has neither.
    """
    problems: dict[tuple[str, ...], str] = {}
    while True:
        try:
            return schema.model_validate(merged), list(problems.values())
        except ValidationError as error:
            mended = merged
            for item in error.errors():
                path = [str(part) for part in item["loc"] if part not in KINDS]
                # What is missing because it was wrong and taken out has been told already.
                problems.setdefault(tuple(path), _describe(item, path, schema))
                mended = _restore(mended, base, _known_prefix(path, schema) or path)
            if mended == merged:
                return None, list(problems.values())
            merged = mended


def _known_prefix(path: list[str], schema: type[BaseModel]) -> list[str]:
    """The part of an error's path that names fields (not positions inside a tuple)."""
    model: type[BaseModel] | None = schema
    known = []
    for part in path:
        if model is None:
            break
        known.append(part)
        model = section(model, part)
    return known


def _restore(
    tree: dict[str, object], base: dict[str, object], path: list[str]
) -> dict[str, object]:
    """A copy of `tree` with the value at `path` as in `base`, or without it."""
    head, *rest = path
    below, original = tree.get(head), base.get(head, {})
    if rest and isinstance(below, dict) and isinstance(original, dict):
        return {**tree, head: _restore(below, original, rest)}
    if head in base:
        return {**tree, head: base[head]}
    return {name: value for name, value in tree.items() if name != head}


def _describe(item: ErrorDetails, path: list[str], schema: type[BaseModel]) -> str:
    dotted = ".".join(_known_prefix(path, schema))
    if item["type"] == "extra_forbidden":
        return f"unknown key {dotted!r}; {hint(dotted, schema)}"
    if item["type"] == "missing" and dotted == ".".join(path):
        return f"{dotted}: has no default and must be given"
    message = item["msg"].removeprefix("Value error, ")
    return f"{dotted}: {message[0].lower()}{message[1:]}, got {item['input']!r}"
