"""From a configuration to the stages a command is about."""

import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.config import PipelineConfig
from pipelines.config.resolve import refuse
from pipelines.graph import Pipeline, Stage
from pipelines.graph.kinds import KINDS
from pipelines.graph.outline import outline
from pipelines.runtime.session import Session
from pipelines.stages.given_shards import find_shards_conflicts
from pipelines.stages.setup import Gaps, StageSetup


def build_stages(
    config: PipelineConfig,
    source: Path,
    session: Session,
    command: Sequence[str],
    wanted: set[str],
) -> list[Stage]:
    """Those of the configuration's stages that are `wanted`; what they need is among them.

    Raises:
        DataError: When `source` (or the intermediate step's own) holds nothing usable.
        ConfigError: When shards that are there do not go with the settings.
    """
    refuse(find_shards_conflicts(config, wanted, source), "the settings, for the shards given")
    return [
        _build(
            StageSetup(
                kind=KINDS[name],
                config=config,
                session=session,
                depends_on=depends_on,
                source=source,
                command=command,
                wanted=frozenset(wanted),
            )
        )
        for name, depends_on in outline(config).items()
        if name in wanted
    ]


def stages_of_report(
    config: PipelineConfig,
    source: Path,
    session: Session,
    command: Sequence[str],
    *,
    whole_command: str,
) -> list[Stage]:
    """The stages that are done as configured, and the report of them and of what is half done.

    Raises:
        ValueError: When nothing is there.
    """
    stages = outline(config)
    built: list[Stage] = []
    why: dict[str, str] = {}
    for name in stages:
        if not KINDS[name].reads_all:
            try:
                # By itself: what other stages would need of the images does not matter here.
                built += build_stages(config, source, session, command, {name})
            except (ValueError, RuntimeError, OSError) as error:  # Images or weights are gone.
                why[name] = str(error)
    survey = Pipeline(session.run_dir, built, say=session.screen.note).survey()
    why |= survey.missing
    if not survey.done and not survey.half_done:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in why.items())
        raise ValueError(
            f"there is nothing to report of {config.name} in {session.run_dir}:{reasons}\n"
            f"This makes it all: {whole_command}"
        )
    if why:
        session.screen.note(f"not there: {', '.join(why)}; this makes it all: {whole_command}")
    gaps = Gaps(
        why={name: why[name] for name in stages if name in why},
        half_done={name: context.directory for name, context in survey.half_done.items()},
        whole_command=whole_command,
    )
    report = StageSetup(
        kind=KINDS["report"],
        config=config,
        session=session,
        depends_on=tuple(name for name in stages["report"] if name not in why),
        source=source,
        command=command,
        gaps=gaps if why else None,
    )
    return [*(stage for stage in built if stage.name in survey.done), _build(report)]


def _build(setup: StageSetup) -> Stage:
    build: Callable[[StageSetup], Stage] = pkgutil.resolve_name(setup.kind.build)
    return build(setup)
