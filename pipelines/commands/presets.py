"""Command `presets`: lists the recipes, or shows every setting of one."""

import argparse
import json
import re
from typing import TYPE_CHECKING

from pipelines.commands import Commands, aligned, command

if TYPE_CHECKING:
    from pipelines.config import PipelineConfig
    from pipelines.presets import Preset


def add_presets_command(commands: Commands) -> None:
    """Add `presets` to the subparsers `commands`."""
    presets = command(
        commands,
        "presets",
        "list the presets, or show all settings of one and where they are from",
        "convnextv2 presets imagenet1k-base",
        _act_presets,
    )
    presets.add_argument("name", nargs="?", help="show this one")


def _act_presets(options: argparse.Namespace) -> int:
    from pipelines.presets import PRESETS, find_preset, load_preset

    if options.name is None:
        every = list(PRESETS.values())
        print(json.dumps(list(map(_facts, every)), indent=1) if options.json else _table(every))
        return 0
    preset, config = find_preset(options.name), load_preset(options.name)
    if options.json:
        settings = config.model_dump(mode="json")
        print(json.dumps({**_facts(preset), "about": preset.about, "config": settings}, indent=1))
    else:
        print(_page(preset, config), end="")
    return 0


def _facts(preset: "Preset") -> dict[str, str | float | None]:
    names = ("name", "what", "published", "cost", "command")
    top1 = re.match(r"\d+\.\d+", preset.published)
    return {
        **{name: getattr(preset, name) for name in names},
        "published_top1_percent": float(top1[0]) if top1 else None,
    }


def _table(presets: list["Preset"]) -> str:
    from pipelines.presets import ALIASES

    rows = [("NAME", "WHAT", "PUBLISHED TOP-1", "COST HERE")]
    rows += [(one.name, one.what, one.published, one.cost) for one in presets]
    aliases = (f"{alias} is short for {name}" for alias, name in ALIASES.items())
    return "\n".join([*aligned(rows), "", *aliases])


def _page(preset: "Preset", config: "PipelineConfig") -> str:
    """All settings as YAML, which --config reads, with what is known about them as comments."""
    from pipelines.config.file import as_yaml

    about = [
        f"{preset.name}: {preset.what}",
        f"  published  {preset.published}",
        f"  cost here  {preset.cost}",
        f"  command    {preset.command}",
        "",
        preset.about,
    ]
    comments = (f"# {line}".rstrip() for line in "\n".join(about).rstrip().splitlines())
    return "\n".join([*comments, "", as_yaml(config)])
