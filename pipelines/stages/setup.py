"""What a stage is built from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipelines.config import DataConfig, PipelineConfig, Section
from pipelines.graph.kinds import KINDS, StageKind
from pipelines.runtime.session import Session

S = TypeVar("S", bound=Section)


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """What a report has to do without.

    Args:
        why: Of every stage that is not done, by name.
        half_done: Folders of stages that are half done: there are curves in them.
        whole_command: What makes the rest.
    """

    why: Mapping[str, str]
    half_done: Mapping[str, Path]
    whole_command: str


@dataclass(frozen=True, kw_only=True)
class StageSetup:
    """What a stage is built from.

    Args:
        kind: The stage's record.
        config: The whole pipeline's; a stage's workers get the sections they need of it.
        session: For its workers, its tracking and its progress.
        depends_on: Names of the stages whose outputs it reads.
        source: Where the images of `data` are.
        command: The command line, word by word.
        wanted: Names of the stages that this command brings about.
        gaps: Of a report: what it has to do without.
    """

    kind: StageKind
    config: PipelineConfig
    session: Session
    depends_on: tuple[str, ...]
    source: Path
    command: Sequence[str] = ()
    wanted: frozenset[str] = frozenset()
    gaps: Gaps | None = None

    def section(self, expected: type[S]) -> S:
        """The stage's own section, which is of the `expected` type."""
        found = self.kind.settings(self.config)
        assert isinstance(found, expected), f"{self.kind.section} is {type(found).__name__}"
        return found

    def data(self) -> DataConfig:
        """The settings of the images that the stage reads."""
        found = KINDS[self.kind.images].settings(self.config)
        assert isinstance(found, DataConfig)
        return found
