"""Presets: recipes as data. `convnextv2 presets` lists them."""

from collections.abc import Sequence

from pipelines.config import PipelineConfig
from pipelines.config.hints import nearest
from pipelines.config.resolve import ConfigError, Wanted, resolve
from pipelines.presets import demo, frozen, imagenet1k, imagenet22k, supervised
from pipelines.presets.recipe import Preset

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for family in (demo, imagenet1k, imagenet22k, supervised, frozen)
    for preset in family.PRESETS
}
ALIASES = {"imagenet1k": "imagenet1k-atto"}

__all__ = ["ALIASES", "PRESETS", "ConfigError", "Preset", "find_preset", "load_preset"]


def find_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        ConfigError: With the nearest name, when there is none.
    """
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        close = nearest(name, [*PRESETS, *ALIASES], otherwise="convnextv2 presets lists them all")
        raise ConfigError([f"unknown preset {name!r}; {close}"])
    return PRESETS[name]


def load_preset(
    name: str, overrides: Sequence[str] = (), wanted: Wanted | None = None
) -> PipelineConfig:
    """Resolve a preset with `a.b=c` overrides (values as in YAML), for stages that are `wanted`.

    Raises:
        ConfigError: Naming every problem of the overrides and of the arithmetic at once.
    """
    return resolve(find_preset(name).build(), overrides, wanted)
