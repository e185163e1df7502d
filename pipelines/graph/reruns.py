"""Doing again what is done: `--rerun`.

A rerun is noted beside the stage it begins with, in `stages/<name>/<key>.rerun.json`, before
anything is touched. Until the note is gone every command takes the rerun up where it was left. What
was done before moves to `stages/<name>/replaced/`, and stays there.
"""

import itertools
import json
import os
import secrets
import time
from pathlib import Path

from pipelines.files import write_json

REPLACED = "replaced"


def noted(directory: Path) -> str | None:
    """The rerun that has begun with the stage in `directory` and has not come to its end."""
    note = _note(directory)
    return str(json.loads(note.read_text())["rerun"]) if note.exists() else None


def begin(directory: Path) -> str:
    """Note that the stage in `directory`, and those behind it, are to be done again."""
    rerun = secrets.token_hex(6)
    directory.parent.mkdir(parents=True, exist_ok=True)
    write_json(_note(directory), {"rerun": rerun})
    return rerun


def end(directory: Path) -> None:
    """Everything is done again."""
    _note(directory).unlink(missing_ok=True)


def replace(directory: Path) -> Path:
    """Move a stage's finished work out of the way; returns where it is kept."""
    folder = directory.parent / REPLACED
    folder.mkdir(exist_ok=True)
    name = f"{directory.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    kept = next(folder / each for each in names if not (folder / each).exists())
    os.replace(directory, kept)
    return kept


def _note(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.rerun.json")
