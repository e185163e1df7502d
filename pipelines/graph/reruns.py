"""Doing again what is done: `--rerun`.

A rerun is noted beside the stage it begins with, in `stages/<name>/<key>.rerun-<settings>.json`,
before anything is touched. While the note is there, commands of the same configuration take the
rerun up where it was left. What was done before moves to `stages/<name>/replaced/` and stays there.
"""

import itertools
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convnextv2.durable import write_json
from pipelines.graph.keys import digest_of

REPLACED = "replaced"


@dataclass(frozen=True)
class Rerun:
    """A rerun that has not ended; `settings` has a digest of the settings of every stage in it."""

    name: str
    settings: Mapping[str, str]
    note: Path

    def covers(self, stage: str, settings: Mapping[str, object]) -> bool:
        """Whether a stage with these settings is in it; a stage of another configuration is not."""
        return self.settings.get(stage) == digest_of(settings)

    def end(self) -> None:
        """Remove the note: all stages were redone."""
        self.note.unlink(missing_ok=True)


def noted(directory: Path) -> dict[str, Rerun]:
    """The reruns, by name, that begin with the stage in `directory`."""
    found = [
        Rerun(**json.loads(note.read_text()), note=note)
        for note in directory.parent.glob(f"{directory.name}.rerun-*.json")
    ]
    return {rerun.name: rerun for rerun in found}


def begin(directory: Path, settings: Mapping[str, Mapping[str, object]]) -> None:
    """Note that the stage in `directory`, and those downstream of it, are to be done again.

    `settings` are those of all these stages, by name. A rerun of them that has begun goes on.
    """
    digests = {stage: digest_of(content) for stage, content in settings.items()}
    note = directory.with_name(f"{directory.name}.rerun-{digest_of(digests)[:8]}.json")
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"name": secrets.token_hex(6), "settings": digests})


def replace(directory: Path) -> Path:
    """Move a stage's finished work out of the way; returns where it is kept."""
    folder = directory.parent / REPLACED
    folder.mkdir(exist_ok=True)
    name = f"{directory.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    kept = next(folder / each for each in names if not (folder / each).exists())
    os.replace(directory, kept)
    return kept
