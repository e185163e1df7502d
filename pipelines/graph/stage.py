"""A stage, the context it works in, and its result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.graph.complete import Outputs


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One node of a pipeline.

    Args:
        name: Folder and command line name.
        run: Does the work in the folder it is given; returns outputs, file name to sha256.
        settings: The part of the configuration that decides the result; JSON values.
        depends_on: Names of the stages whose outputs it reads.
        code: Functions that make the result; their source, and that of all they use, is in the key.
        check: Called when the stage is done, by this command or before; raises where other stages
            cannot use the outputs.
        when_damaged: What a person is to do about an output that is not as it was written. Without
            it the file is set aside and `run` makes it again.
    """

    name: str
    run: Callable[["StageContext"], Outputs]
    settings: Mapping[str, object]
    depends_on: tuple[str, ...] = ()
    code: tuple[Callable[..., object], ...] = ()
    check: Callable[["StageContext"], None] = lambda context: None
    when_damaged: str = ""


@dataclass(frozen=True)
class StageContext:
    """Where a stage works, and where its inputs are.

    Args:
        stage: The stage.
        directory: Its own folder, `stages/<name>/<key>`.
        key: Hash of the parts.
        parts: What decides the result: settings, digests of the inputs, digest of the code.
        inputs: Folders of the stages it depends on, by name.
    """

    stage: Stage
    directory: Path
    key: str
    parts: Mapping[str, object]
    inputs: dict[str, Path]


@dataclass(frozen=True)
class StageResult:
    """What became of a stage: "done" (before), "resumed" or "run", and the reason."""

    context: StageContext
    status: str
    reason: str
    seconds: float = 0.0
