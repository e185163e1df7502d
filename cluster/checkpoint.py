"""The checkpoint contract: a step is on disk whole, or it is not there.

    checkpoints/
      step-00000400/          complete: MANIFEST.json lists every file with size and sha256
      step-00000200/
      .step-00000600.partial/ being written, or left by a kill; swept by the next save

A save is written under the partial name by all workers, every file is fsynced and hashed, the
manifest is written last, and the directory renamed. `latest_good` trusts nothing but manifests
that verify, newest first; what does not verify is reported and passed over, never deleted. A
checkpoint may be read on any machine; which number of workers may load it is the engine's matter.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import group

MANIFEST = "MANIFEST.json"
SCHEMA = 1
_NAME = re.compile(r"step-(\d{8})$")
_OWNER = re.compile(r"(?:pp_rank_|^rank-)(\d+)")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or does not fit; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: where it lies, its step and what the writer noted about it."""

    path: Path
    step: int
    notes: dict[str, Any]


@dataclass(frozen=True)
class Search:
    """Result of looking for the last good checkpoint; `rejected` holds (path, reason)."""

    found: Checkpoint | None
    rejected: list[tuple[Path, str]] = field(default_factory=list)


def publish(
    root: Path, step: int, write: Callable[[Path], None], notes: dict[str, Any]
) -> Checkpoint:
    """Save collectively: every worker calls `write(directory)`; returns the checkpoint.

    Raises:
        CheckpointError: On every worker, when any of them failed; no checkpoint then exists.
    """
    final = root / f"step-{step:08d}"
    partial = root / f".{final.name}.partial"
    _together("prepare", lambda: _prepare(root, partial))
    try:
        _together("write", lambda: write(partial), everywhere=True)
        files = _together("hash", lambda: _sync_and_hash(partial), everywhere=True)
        entries = {name: entry for part in files for name, entry in part.items()}
        _together("commit", lambda: _commit(partial, final, step, entries, notes))
    except CheckpointError as error:
        # Said because PyTorch's own words for a full disk are "unexpected pos".
        free = shutil.disk_usage(root).free
        if group.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{error}; {free / 1e6:,.0f} MB were free in {root}") from error
    return Checkpoint(final, step, notes)


def latest_good(root: Path) -> Search:
    """Find the newest checkpoint whose manifest verifies. Reads every byte of it."""
    rejected: list[tuple[Path, str]] = []
    for path in sorted(root.glob("step-*"), reverse=True):
        if not _NAME.search(path.name):
            continue
        try:
            return Search(verify(path), rejected)
        except CheckpointError as error:
            rejected.append((path, str(error)))
    return Search(None, rejected)


def verify(path: Path) -> Checkpoint:
    """Check every file against the manifest; raises CheckpointError naming the first that fails."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        seal = manifest.pop("seal")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"no readable {MANIFEST}: {error}") from error
    if seal != _seal(manifest):
        raise CheckpointError(f"{MANIFEST} has changed since it was written")
    for name, entry in manifest["files"].items():
        try:
            size, digest = _hash(path / name)
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error}") from error
        if size != entry["bytes"]:
            raise CheckpointError(f"{name} has {size} bytes instead of {entry['bytes']}")
        if digest != entry["sha256"]:
            raise CheckpointError(f"{name} has changed since it was written (sha256 differs)")
    return Checkpoint(path, manifest["step"], manifest["notes"])


def prune(root: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints; called on rank 0 after a good save."""
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; at least 1 checkpoint must stay")
    complete = [p for p in sorted(root.glob("step-*")) if _NAME.search(p.name)]
    for path in complete[:-keep_last]:
        # Renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint.
        doomed = root / f".{path.name}.partial"
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def sweep(root: Path) -> None:
    """Remove what an interrupted save left; nobody may be saving there."""
    for left_over in root.glob(".step-*.partial"):
        shutil.rmtree(left_over)


def _together(what: str, act: Callable[[], Any], *, everywhere: bool = False) -> Any:
    """Run `act` on rank 0 (or everywhere) and agree on the outcome before anyone goes on."""
    outcome, problem = None, None
    if everywhere or group.rank() == 0:
        try:
            outcome = act()
        except Exception as error:
            problem = f"rank {group.rank()}: {type(error).__name__}: {error}"
    answers = group.gather((outcome, problem))
    problems = [problem for _, problem in answers if problem]
    if problems:
        raise CheckpointError(f"checkpoint not saved ({what} failed): " + "; ".join(problems))
    return [outcome for outcome, _ in answers] if everywhere else answers[0][0]


def _prepare(root: Path, partial: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    partial.mkdir()


def _sync_and_hash(partial: Path) -> dict[str, dict[str, Any]]:
    mine = {}
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        if _owner(path.name) != group.rank():
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
        size, digest = _hash(path)
        mine[str(path.relative_to(partial))] = {"bytes": size, "sha256": digest}
    return mine


def _owner(name: str) -> int:
    """The worker that hashes a file: the one that wrote it, whose pages are still in memory."""
    match = _OWNER.search(name)
    return int(match.group(1)) % group.world_size() if match else 0


def _commit(
    partial: Path, final: Path, step: int, entries: dict[str, Any], notes: dict[str, Any]
) -> None:
    manifest = {"schema": SCHEMA, "step": step, "files": entries, "notes": notes}
    with (partial / MANIFEST).open("w") as file:
        json.dump({**manifest, "seal": _seal(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for folder in sorted({path.parent for path in partial.rglob("*")} | {partial}):
        _sync_folder(folder)
    for path in final.parent.glob("step-*"):
        if _NAME.search(path.name) and path.name >= final.name:
            # From this step on there is only what failed to verify: it is evidence, and must not
            # count as the newest.
            os.replace(path, path.with_name(f"{path.name}.rejected-{time.time_ns():x}"))
    os.replace(partial, final)
    _sync_folder(final.parent)


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stat().st_size, digest
