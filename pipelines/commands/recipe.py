"""Which recipe a command is for: `--preset NAME` or `--config FILE`, changed by `--set`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convnextv2.sizes import SIZES

if TYPE_CHECKING:
    from pipelines.config import PipelineConfig
    from pipelines.config.resolve import Wanted


def add_recipe_options(
    parser: argparse.ArgumentParser, *, positional: bool = False, default: str | None = None
) -> None:
    """Add the options; where `default` is None, a preset or a file must be given.

    `positional`: the preset's name alone, without --preset in front of it.
    """
    text = "a recipe; convnextv2 presets lists them"
    text += f" (default: {default})" if default is not None else ""
    chosen = parser.add_mutually_exclusive_group()
    if positional:
        chosen.add_argument("preset", nargs="?", metavar="NAME", help=text)
    else:
        chosen.add_argument("--preset", metavar="NAME", help=text)
    chosen.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="all settings as YAML: config.yaml of a run folder, or what convnextv2 presets NAME "
        "prints",
    )
    parser.set_defaults(default_preset=default)
    add_set_option(parser)


def add_set_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="change a setting (repeatable)"
    )


def chosen_config(
    options: argparse.Namespace, overrides: Sequence[str], wanted: "Wanted | None" = None
) -> "PipelineConfig":
    """The checked configuration that the options ask for.

    Raises:
        ValueError: When they name no recipe, with some that would work; or when it has problems.
    """
    from pipelines.config.resolve import resolve_file
    from pipelines.presets import load_preset

    if options.config is not None:
        return resolve_file(options.config, overrides, wanted)
    name = options.preset or options.default_preset
    if name is None:
        raise ValueError(_which(options.command, options.run_dir))
    return load_preset(name, overrides, wanted)


def _which(command: str, run_dir: Path | None) -> str:
    """The error for a missing recipe, with the first presets of each size that would work."""
    from pipelines.config.file import CONFIG
    from pipelines.presets import PRESETS

    by_size: dict[str, list[str]] = {}
    for preset in PRESETS.values():
        config = preset.build()
        if command == "run" or _has(command, config):
            by_size.setdefault(config.model.size, []).append(preset.name)
    name = "NAME" if command == "run" else "--preset NAME"
    file = run_dir / CONFIG if run_dir is not None and (run_dir / CONFIG).exists() else "FILE"
    return "\n".join(
        [
            f"{command}: no recipe was chosen. Give {name} or --config {file}; "
            "for example, by size",
            *(f"  {size:6} {', '.join(by_size[size][:2])}" for size in SIZES if size in by_size),
            "convnextv2 presets lists and describes them all",
        ]
    )


def _has(command: str, config: "PipelineConfig") -> bool:
    from pipelines.graph.outline import stages_of_command

    try:
        return bool(stages_of_command(command, config))
    except ValueError:
        return False
