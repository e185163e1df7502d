"""Runs stages in order: those that are done are skipped, those half done resumed, others run."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.graph import reruns
from pipelines.graph.complete import (
    COMPLETE,
    DamageError,
    damaged,
    mark_complete,
    read_complete,
    set_aside,
)
from pipelines.graph.keys import code_digest, digest_of
from pipelines.graph.reasons import why_new
from pipelines.graph.reruns import Rerun
from pipelines.graph.stage import Stage, StageContext, StageResult

SCHEMA = 1
KEY_LENGTH = 12


@dataclass(frozen=True)
class Survey:
    """What is there of a pipeline, as it is configured now.

    Args:
        done: Contexts of the stages that are done, by name.
        half_done: Contexts of the stages that were begun.
        missing: Why each stage that is not done is not, by name.
    """

    done: dict[str, StageContext]
    half_done: dict[str, StageContext]
    missing: dict[str, str]


@dataclass
class Pipeline:
    """Runs stages in order below `root`.

    Args:
        root: The run's folder.
        stages: In the order they run.
        on_start: Called before a stage does anything, with its status and the reason.
        on_done: Called after it.
        say: Called with sentences for the user.
        stage_results: What became of the stages so far.
    """

    root: Path
    stages: Sequence[Stage]
    on_start: Callable[[StageContext, str, str], None] = lambda context, status, reason: None
    on_done: Callable[[StageResult], None] = lambda result: None
    say: Callable[[str], None] = lambda message: None
    stage_results: list[StageResult] = field(default_factory=list)

    def run(self, *, rerun: str | None = None) -> list[StageResult]:
        """Bring all stages to completion; `rerun` and those downstream of it are done again.

        Raises:
            ValueError: When there is no stage `rerun`.
            DamageError: When an output is damaged that no stage can make again.
        """
        depends_on = {stage.name: stage.depends_on for stage in self.stages}
        if rerun is not None:
            needed_for(rerun, depends_on)  # An unknown one is said before anything is touched.
        downstream = {
            stage.name: stage.settings
            for stage in self.stages
            if rerun in needed_for(stage.name, depends_on)
        }
        contexts: dict[str, StageContext] = {}
        digests: dict[str, str] = {}
        under_way: dict[str, Rerun] = {}  # Reruns that have begun and not ended, by name.
        part_of: dict[str, set[str]] = {}  # Those of them that a stage must be redone for.
        for stage in self.stages:
            context = self._context_of(stage, digests, contexts)
            if stage.name == rerun:
                reruns.begin(context.directory, downstream)
            begun = reruns.noted(context.directory)
            under_way |= begun
            names = set(begun).union(*(part_of[name] for name in stage.depends_on))
            part_of[stage.name] = {
                name for name in names if under_way[name].covers(stage.name, stage.settings)
            }
            result = self._complete(context, part_of[stage.name])
            stage.check(context)
            self.stage_results.append(result)
            contexts[stage.name], digests[stage.name] = context, _digest(context)
            self.on_done(result)
        for name, each in under_way.items():
            if all(name in part_of.get(stage, ()) for stage in each.settings):
                each.end()
        return self.stage_results

    def survey(self) -> Survey:
        """Look at what is there; nothing runs and nothing is set aside."""
        survey = Survey({}, {}, {})
        digests: dict[str, str] = {}
        for stage in self.stages:
            absent = [name for name in stage.depends_on if name not in survey.done]
            if absent:
                survey.missing[stage.name] = f"it needs {', '.join(absent)}"
                continue
            context = self._context_of(stage, digests, survey.done)
            problems = damaged(context.directory, self.say)
            if problems:
                described = [f"{name} {problem}" for name, problem in problems.items()]
                survey.missing[stage.name] = "; ".join(described)
            elif (context.directory / COMPLETE).exists():
                survey.done[stage.name], digests[stage.name] = context, _digest(context)
            elif context.directory.exists():
                survey.half_done[stage.name] = context
                survey.missing[stage.name] = "it is half done"
            else:
                survey.missing[stage.name] = why_new(context.directory.parent, context.parts)
        return survey

    def _context_of(
        self, stage: Stage, digests: dict[str, str], contexts: dict[str, StageContext]
    ) -> StageContext:
        """The folder that the stage's key names; the stages it depends on have theirs."""
        parts = {
            "stage": stage.name,
            "schema": SCHEMA,
            "settings": stage.settings,
            "inputs": {name: digests[name] for name in stage.depends_on},
            "code": code_digest(stage.code),
        }
        parts = json.loads(json.dumps(parts))  # As it will be read back: tuples become lists.
        key = digest_of(parts)[:KEY_LENGTH]
        directory = self.root / "stages" / stage.name / key
        inputs = {name: contexts[name].directory for name in stage.depends_on}
        return StageContext(stage, directory, key, parts, inputs)

    def _complete(self, context: StageContext, part_of: set[str]) -> StageResult:
        """Run a stage unless it is done; `part_of` are reruns that it must have been redone for."""
        if part_of and _done_before(context, part_of):
            kept = reruns.replace(context.directory)
            self.say(f"{context.stage.name}: what was done before is kept in {kept}")
            status, reason = "run", "it was asked for again"
        elif reason := self._set_damage_aside(context):
            status = "resumed"
        elif (context.directory / COMPLETE).exists():
            return StageResult(context, "done", "nothing it depends on has changed")
        elif context.directory.exists():
            status, reason = "resumed", "it was left half done"
        else:
            status, reason = "run", why_new(context.directory.parent, context.parts)
        context.directory.mkdir(parents=True, exist_ok=True)
        self.on_start(context, status, reason)
        self._check_inputs(context)
        begin = time.perf_counter()
        outputs = context.stage.run(context)
        seconds = time.perf_counter() - begin
        mark_complete(context.directory, outputs, context.parts, seconds, sorted(part_of))
        return StageResult(context, status, reason, seconds)

    def _set_damage_aside(self, context: StageContext) -> str:
        """Move damaged outputs out of the way; returns what is wrong, or ""."""
        problems = damaged(context.directory, self.say)
        described = []
        for name, problem in problems.items():
            if context.stage.when_damaged:
                where = context.directory / name
                raise DamageError(f"{where} {problem}. {context.stage.when_damaged}")
            described.append(f"{name} {problem}")
            if (context.directory / name).exists():
                described[-1] += f" and is kept as {set_aside(context.directory / name).name}"
        return "; ".join(described)

    def _check_inputs(self, context: StageContext) -> None:
        """Look at the inputs again: other stages may have run for days in between."""
        for directory in context.inputs.values():
            for name, problem in damaged(directory, self.say).items():
                raise DamageError(
                    f"{directory / name} {problem}, and {context.stage.name} was to read it. The "
                    "same command again makes it anew, or says what to do"
                )


def _done_before(context: StageContext, part_of: set[str]) -> bool:
    """Whether the stage is done, but was not redone for all of these reruns."""
    try:
        complete = read_complete(context.directory)
    except ValueError:
        return True
    return complete is not None and not part_of <= set(complete.get("reruns", ()))


def _digest(context: StageContext) -> str:
    complete = read_complete(context.directory)
    assert complete is not None
    return str(complete["digest"])


def needed_for(name: str, depends_on: Mapping[str, Sequence[str]]) -> list[str]:
    """`name` and all the stages it needs, in order; `depends_on` has what each reads.

    Raises:
        ValueError: When there is no such stage.
    """
    if name not in depends_on:
        raise ValueError(f"unknown stage {name!r}; there are {', '.join(depends_on)}")
    needed, todo = set(), [name]
    while todo:
        current = todo.pop()
        needed.add(current)
        todo += depends_on[current]
    return [stage for stage in depends_on if stage in needed]
