"""The checkpoint contract: a step is on disk whole, or it is not there.

    checkpoints/
      step-00000400/          complete: MANIFEST.json lists every file with size and sha256
      step-00000200/
      .step-00000600.partial/ being written, or left by a kill; swept by the next save

A save is written under the partial name by all workers, every file is fsynced and hashed, the
manifest is written last, and the directory renamed. `latest_good` trusts nothing but manifests
that verify, newest first; what does not verify is reported and passed over, never deleted.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cluster import group
from cluster.state_files import Entry

MANIFEST = "MANIFEST.json"
SCHEMA = 2
_NAME = re.compile(r"step-(\d{8})$")

Write = Callable[[Path], dict[str, Entry]]


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
class Search:
    """Result of looking for the last good checkpoint; `rejected` holds (path, reason)."""

    found: Checkpoint | None
    rejected: list[tuple[Path, str]] = field(default_factory=list)


def publish(
    root: Path,
    step: int,
    write: Write,
    notes: dict[str, Any],
    workers: dist.ProcessGroup | None = None,
) -> Checkpoint:
    """Save collectively: every worker calls `write(directory)`; returns the checkpoint.

    `write` returns what it wrote by file name, fsynced and hashed. `workers` is the group to agree
    in, the default one without.

    Raises:
        CheckpointError: On every worker, when any of them failed; no checkpoint then exists.
    """
    final = root / f"step-{step:08d}"
    partial = root / f".{final.name}.partial"

    def together(what: str, act: Callable[[], Any], *, everywhere: bool = False) -> Any:
        return _together(what, act, workers, everywhere=everywhere)

    together("prepare", lambda: _prepare(root, partial))
    try:
        files = together("write", lambda: write(partial), everywhere=True)
        entries = {name: asdict(entry) for part in files for name, entry in part.items()}
        together("commit", lambda: _commit(partial, final, step, entries, notes))
    except CheckpointError as error:
        # Said because the system's own words for a full disk can be "input/output error".
        free = shutil.disk_usage(root).free
        if group.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{error}; {free / 1e6:,.0f} MB were free in {root}") from error
    return Checkpoint(final, step, notes, sum(entry["bytes"] for entry in entries.values()))


def steps(root: Path) -> list[Path]:
    """Directories of checkpoints that were published, good or not, oldest first."""
    return sorted(path for path in root.glob("step-*") if _NAME.search(path.name))


def latest_good(root: Path) -> Search:
    """Find the newest checkpoint whose manifest verifies. Reads every byte of it."""
    rejected: list[tuple[Path, str]] = []
    for path in reversed(steps(root)):
        try:
            return Search(verify(path), rejected)
        except CheckpointError as error:
            rejected.append((path, str(error)))
    return Search(None, rejected)


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
    if seal != _seal(manifest):
        raise CheckpointError(f"{MANIFEST} has changed since it was written")
    if manifest["schema"] != SCHEMA:
        raise CheckpointError(f"its layout is {manifest['schema']}, this version reads {SCHEMA}")
    for name, entry in manifest["files"].items():
        try:
            size = (path / name).stat().st_size
            digest = _hash(path / name) if contents and size == entry["bytes"] else None
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error}") from error
        if size != entry["bytes"]:
            raise CheckpointError(f"{name} has {size} bytes instead of {entry['bytes']}")
        if digest is not None and digest != entry["sha256"]:
            raise CheckpointError(f"{name} has changed since it was written (sha256 differs)")
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    return Checkpoint(path, manifest["step"], manifest["notes"], total)


def sweep(root: Path) -> None:
    """Remove what an interrupted save left; nobody may be saving there."""
    for left_over in root.glob(".step-*.partial"):
        shutil.rmtree(left_over)


def remove(path: Path) -> None:
    """Remove a published checkpoint."""
    # Renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint.
    doomed = path.with_name(f".{path.name}.partial")
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def _together(
    what: str,
    act: Callable[[], Any],
    workers: dist.ProcessGroup | None,
    *,
    everywhere: bool,
) -> Any:
    """Run `act` on rank 0 (or everywhere) and agree on the outcome before anyone goes on."""
    outcome, problem = None, None
    if everywhere or group.rank() == 0:
        try:
            outcome = act()
        except Exception as error:
            problem = f"rank {group.rank()}: {type(error).__name__}: {error}"
    answers = group.gather((outcome, problem), workers)
    problems = [problem for _, problem in answers if problem]
    if problems:
        raise CheckpointError(f"checkpoint not saved ({what} failed): " + "; ".join(problems))
    return [outcome for outcome, _ in answers] if everywhere else answers[0][0]


def _prepare(root: Path, partial: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    partial.mkdir()


def _commit(
    partial: Path, final: Path, step: int, entries: dict[str, Any], notes: dict[str, Any]
) -> None:
    manifest = {"schema": SCHEMA, "step": step, "files": entries, "notes": notes}
    with (partial / MANIFEST).open("w") as file:
        json.dump({**manifest, "seal": _seal(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for folder in sorted({path.parent for path in partial.rglob("*")} | {partial}):
        sync_folder(folder)
    for path in steps(final.parent):
        if path.name >= final.name:
            # From this step on there is only what failed to verify: it is evidence, and must not
            # count as the newest.
            os.replace(path, path.with_name(f"{path.name}.rejected-{time.time_ns():x}"))
    os.replace(partial, final)
    sync_folder(final.parent)


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
