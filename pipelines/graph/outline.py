"""Which stages a configuration has, what each reads, and what commands ask for. Imports nothing
heavy: a stage that is not there is said in the first second.
"""

from collections.abc import Mapping, Sequence

from pipelines.config import PipelineConfig
from pipelines.graph.kinds import KINDS, stage_commands
from pipelines.graph.pipeline import needed_for

Outline = Mapping[str, tuple[str, ...]]


def outline(config: PipelineConfig) -> Outline:
    """Names of the stages in the order they run, each with those whose outputs it reads."""
    stages: dict[str, tuple[str, ...]] = {}
    for kind in sorted(KINDS.values(), key=lambda kind: kind.reads_all):
        if kind.is_in(config) and (not kind.evaluates or kind.evaluates in stages):
            stages[kind.name] = kind.inputs(stages)
    return stages


def wanted_stages(config: PipelineConfig, until: Sequence[str] = ()) -> set[str]:
    """The stages `until` (all of them, without) and all that these need."""
    stages = outline(config)
    return {name for each in until or stages for name in needed_for(each, stages)}


def stages_of_command(command: str, config: PipelineConfig) -> list[str]:
    """The stages a command of the command line is to bring about.

    Raises:
        ValueError: When the configuration has none of them; naming the commands that have.
    """
    there = outline(config)

    def found(command: str) -> list[str]:
        return [name for name in there if command in (name, *KINDS[name].part_of)]

    if not found(command):
        *others, last = [kind.name for kind in stage_commands() if found(kind.name)]
        raise ValueError(
            f"{config.name} has no stage {command!r}; it has {', '.join(others)} and {last} "
            f"(convnextv2 presets lists recipes that may have it)"
        )
    return found(command)
