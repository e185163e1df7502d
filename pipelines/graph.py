"""Stages addressed by content: done means never again, half done means resume.

A stage lives in `stages/<name>/<key>/`. The key is a hash of the settings it declares, of its
inputs' digests and of the code it runs; number of workers, device and paths are not in it.
`COMPLETE.json`, written last, says that the stage is done and what its outputs are.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.files import write_json

COMPLETE = "COMPLETE.json"
SCHEMA = 1
KEY_LENGTH = 12
SOURCES = {".py", ".cpp", ".h"}

Outputs = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One node of a pipeline.

    Args:
        name: Folder and command line name.
        run: Does the work in the folder it is given; returns outputs, file name to sha256.
        settings: The part of the configuration that decides the result; JSON values.
        after: Names of the stages whose outputs it reads.
        code: Modules and packages whose source decides the result.
        check: Looks at the outputs, whenever they were made, before another stage reads them;
            raises when that cannot go well.
    """

    name: str
    run: Callable[["Place"], Outputs]
    settings: dict[str, Any]
    after: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    check: Callable[["Place"], None] = lambda place: None


@dataclass(frozen=True)
class Place:
    """Where a stage works, and where its inputs lie."""

    stage: Stage
    directory: Path
    key: str
    parts: dict[str, Any]
    inputs: dict[str, Path]

    @property
    def complete(self) -> dict[str, Any] | None:
        """The content of COMPLETE.json if every output is still there in full."""
        path = self.directory / COMPLETE
        if not path.exists():
            return None
        content: dict[str, Any] = json.loads(path.read_text())
        for name, entry in content["outputs"].items():
            output = self.directory / name
            if not output.exists() or output.stat().st_size != entry["bytes"]:
                return None
        return content


@dataclass(frozen=True)
class Visit:
    """What became of one stage: "done" before, "resumed" or "run" now, and why."""

    place: Place
    status: str
    reason: str
    seconds: float = 0.0


@dataclass
class Pipeline:
    """Runs stages in order below `root`.

    Args:
        root: The run's folder.
        stages: In the order they run.
        on_start: Called before a stage does anything, with its status and the reason.
        on_done: Called after it.
        outline: What each stage reads, of all there are, where `stages` are not all.
        visits: What became of the stages so far.
    """

    root: Path
    stages: Sequence[Stage]
    on_start: Callable[[Place, str, str], None] = lambda place, status, reason: None
    on_done: Callable[[Visit], None] = lambda visit: None
    outline: Mapping[str, tuple[str, ...]] | None = None
    visits: list[Visit] = field(default_factory=list)

    def run(self, *, until: Sequence[str] = ()) -> list[Visit]:
        """Bring the stages `until`, with what they need, to completion; all when it is empty."""
        targets = until or [stage.name for stage in self.stages]
        wanted = {name for target in targets for name in self.needed_for(target)}
        digests: dict[str, str] = {}
        places: dict[str, Place] = {}
        for stage in self.stages:
            if stage.name not in wanted:
                continue
            place = self._place(stage, digests, places)
            visit = self._visit(place)
            stage.check(place)
            self.visits.append(visit)
            complete = place.complete
            assert complete is not None
            digests[stage.name] = complete["digest"]
            places[stage.name] = place
            self.on_done(visit)
        return self.visits

    def needed_for(self, name: str) -> list[str]:
        """`name` and everything before it that it needs, in order."""
        return needed_for(name, self._after)

    def behind(self, name: str) -> list[str]:
        """`name` and every stage that reads it, directly or not."""
        return [stage for stage in self._after if name in self.needed_for(stage)]

    @property
    def _after(self) -> Mapping[str, tuple[str, ...]]:
        return self.outline or {stage.name: stage.after for stage in self.stages}

    def invalidate(self, name: str) -> list[str]:
        """Put finished work of `name` and the stages behind it aside, to be done again."""
        self.needed_for(name)
        for stage in self.behind(name):
            for directory in sorted((self.root / "stages" / stage).glob("[!.]*")):
                aside = directory.with_name(f".superseded-{directory.name}-{time.time_ns():x}")
                os.replace(directory, aside)
        return self.behind(name)

    def _place(self, stage: Stage, digests: dict[str, str], places: dict[str, Place]) -> Place:
        parts = {
            "stage": stage.name,
            "schema": SCHEMA,
            "settings": stage.settings,
            "inputs": {name: digests[name] for name in stage.after},
            "code": code_digest(stage.code),
        }
        parts = json.loads(json.dumps(parts))  # As it will be read back: tuples become lists.
        key = digest_of(parts)[:KEY_LENGTH]
        directory = self.root / "stages" / stage.name / key
        inputs = {name: places[name].directory for name in stage.after}
        return Place(stage, directory, key, parts, inputs)

    def _visit(self, place: Place) -> Visit:
        if place.complete is not None:
            return Visit(place, "done", "nothing it depends on has changed")
        if place.directory.exists():
            finished = (place.directory / COMPLETE).exists()
            reason = "an output is gone or cut short" if finished else "it was left half done"
            status = "resumed"
        else:
            status, reason = "run", why_new(place)
        place.directory.mkdir(parents=True, exist_ok=True)
        self.on_start(place, status, reason)
        begin = time.perf_counter()
        outputs = place.stage.run(place)
        seconds = time.perf_counter() - begin
        _mark_complete(place, outputs, seconds)
        for old in place.directory.parent.glob(".superseded-*"):
            shutil.rmtree(old)
        return Visit(place, status, reason, seconds)


def needed_for(name: str, after: Mapping[str, Sequence[str]]) -> list[str]:
    """`name` and all it needs, in order; `after` has what every stage reads.

    Raises:
        ValueError: When there is no such stage.
    """
    if name not in after:
        raise ValueError(f"unknown stage {name!r}; there are {', '.join(after)}")
    needed, todo = set(), [name]
    while todo:
        current = todo.pop()
        needed.add(current)
        todo += after[current]
    return [stage for stage in after if stage in needed]


def why_new(place: Place) -> str:
    """Compare the key's parts with the latest finished run of the same stage, in words."""
    others = sorted(place.directory.parent.glob(f"*/{COMPLETE}"), key=lambda p: p.stat().st_mtime)
    if not others:
        return "it has not been run here before"
    before = json.loads(others[-1].read_text())["parts"]
    changes = _differences(before, place.parts)
    if not changes:
        return "it was asked for again"
    return "changed: " + ", ".join(changes[:4]) + (" …" if len(changes) > 4 else "")


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            change
            for key in keys
            for change in _differences(
                before.get(key), now.get(key), f"{path}.{key}" if path else key
            )
        ]
    if before == now:
        return []
    if path == "code" or path.startswith("inputs."):
        return [path.removeprefix("inputs.") if path != "code" else "the code"]
    return [f"{path.removeprefix('settings.')} {before} → {now}"]


def _mark_complete(place: Place, outputs: Outputs, seconds: float) -> None:
    content = {
        "outputs": {
            name: {"sha256": sha256, "bytes": (place.directory / name).stat().st_size}
            for name, sha256 in outputs.items()
        },
        "digest": digest_of(outputs),
        "parts": place.parts,
        "seconds": seconds,
        "finished": time.time(),
    }
    write_json(place.directory / COMPLETE, content)


def hash_files(directory: Path, *names: str) -> Outputs:
    """Outputs by hashing the named files."""
    outputs = {}
    for name in names:
        with (directory / name).open("rb") as file:
            outputs[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return outputs


def digest_of(content: Any) -> str:
    """sha256 of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest(modules: Sequence[str]) -> str:
    """One digest for the source of modules; of packages, with everything below them."""
    total = hashlib.sha256()
    for module in sorted(modules):
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        assert spec.origin is not None, module
        origin = Path(spec.origin)
        files = [origin]
        if origin.name == "__init__.py":
            files = sorted(f for f in origin.parent.rglob("*") if f.suffix in SOURCES)
        for file in files:
            total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()
