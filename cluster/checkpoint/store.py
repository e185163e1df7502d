"""The checkpoint contract: a step is on disk whole, or it is not there.

    checkpoints/
      step-00000400/             complete: MANIFEST.json lists every file with size and sha256
      step-00000200/
      .step-00000600.…partial/   being written, or left by a kill; swept by the next save
      step-00000500.rejected-…/  was the newest and did not verify, or was not to be gone on from;
                                 kept as evidence

`latest_good` trusts nothing but manifests that verify, newest first; what does not verify is
reported and passed over, never deleted. How workers put a step there together is
`cluster.checkpoint.publishing`.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import durable
from cluster.durable import FileDigest

log = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"
SCHEMA = 2
_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"\.step-.+\.(\d+)-[0-9a-f]+\.partial")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or does not fit; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: where it lies, its step and what the writer noted about it."""

    path: Path
    step: int
    notes: dict[str, Any]
    bytes: int = 0


@dataclass(frozen=True)
class RestoreSearch:
    """Result of looking for the last good checkpoint; `rejected` holds (path, reason)."""

    found: Checkpoint | None
    rejected: list[tuple[Path, str]] = field(default_factory=list)


def steps(root: Path) -> list[Path]:
    """Directories of checkpoints that were published, good or not, oldest first."""
    return sorted((path for path in root.glob("step-*") if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's directory."""
    return int(path.name.removeprefix("step-"))


def latest_good(root: Path) -> RestoreSearch:
    """Find the newest checkpoint whose manifest verifies. Reads every byte of it."""
    rejected: list[tuple[Path, str]] = []
    for path in reversed(steps(root)):
        try:
            return RestoreSearch(verify(path), rejected)
        except CheckpointError as error:
            rejected.append((path, str(error)))
    return RestoreSearch(None, rejected)


def verify(path: Path, *, contents: bool = True) -> Checkpoint:
    """Check every file against the manifest; without `contents` the sizes only.

    Raises:
        CheckpointError: Naming the first file that is not as the manifest says.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        seal = manifest.pop("seal")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"no readable {MANIFEST}: {error}") from error
    if seal != seal_of(manifest):
        raise CheckpointError(f"{MANIFEST} has changed since it was written")
    if manifest["schema"] != SCHEMA:
        raise CheckpointError(f"its layout is {manifest['schema']}, this version reads {SCHEMA}")
    entries = {name: FileDigest(**entry) for name, entry in manifest["files"].items()}
    check_files(path, entries, contents=contents)
    size = sum(entry.bytes for entry in entries.values())
    return Checkpoint(path, manifest["step"], manifest["notes"], size)


def good_by_size(root: Path) -> list[Checkpoint]:
    """Checkpoints whose manifest is whole and whose files have their size, oldest first."""
    found = []
    for path in steps(root):
        try:
            found.append(verify(path, contents=False))
        except CheckpointError:
            continue  # `latest_good` reports it when it looks for one.
    return found


def set_aside(path: Path) -> None:
    """Rename a checkpoint: it is kept, and no longer taken for one."""
    os.replace(path, path.with_name(f"{path.name}.rejected-{time.time_ns():x}"))


def sweep(root: Path, generation: int | None = None) -> None:
    """Remove what interrupted saves left: all of it, when nobody may be saving there, or what
    attempts up to `generation` (`cluster.resilience.lease`) made.

    Raises:
        OSError: When something could not be moved away; then it may still be published.
    """
    moved = [
        _moved_away(left_over)
        for left_over in root.glob(".step-*.partial")
        if generation is None or _generation_of(left_over) <= generation
    ]
    for doomed in moved:
        _remove_tree(doomed)


def remove(path: Path) -> None:
    """Remove a checkpoint, or what an interrupted save left of one."""
    _remove_tree(_moved_away(path))


def _moved_away(path: Path) -> Path | None:
    """A folder's new name, under which it is removed; None if somebody else removes it.

    A kill in the middle leaves nothing that looks like a checkpoint, and a lost worker that still
    writes there meets an error.
    """
    doomed = path.with_name(unused_name("step-removed"))
    try:
        os.replace(path, doomed)
    except FileNotFoundError:
        return None
    return doomed


def _remove_tree(doomed: Path | None) -> None:
    if doomed is not None:
        try:
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning("what a save left in %s stays for now: %s", doomed, error)


def unused_name(name: str, generation: int = 0) -> str:
    """A name for a folder that is no checkpoint yet, or no longer; never used before."""
    return f".{name}.{generation}-{secrets.token_hex(8)}.partial"


def _generation_of(left_over: Path) -> int:
    """Of the attempt that made it; 0 if that is not known."""
    match = _PARTIAL.fullmatch(left_over.name)
    return 0 if match is None else int(match[1])


def check_files(directory: Path, entries: dict[str, FileDigest], *, contents: bool) -> None:
    """Raise CheckpointError, naming it, for a file that is not as its entry says."""
    for name, entry in entries.items():
        path = directory / name
        try:
            size = path.stat().st_size
            digest = durable.sha256(path) if contents and size == entry.bytes else entry.sha256
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error}") from error
        if size != entry.bytes:
            raise CheckpointError(f"{name} has {size} bytes instead of {entry.bytes}")
        if digest != entry.sha256:
            raise CheckpointError(f"{name} has changed since it was written (sha256 differs)")


def seal_of(manifest: dict[str, Any]) -> str:
    """What a manifest says over itself, so that a change of it is noticed."""
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
