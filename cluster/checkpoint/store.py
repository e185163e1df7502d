"""The checkpoint contract: a step is on disk whole, or it is not there.

    checkpoints/
      step-00000400/             complete: MANIFEST.json lists every file with size and sha256
      step-00000200/
      .step-00000600.1f…partial/ being written, or left by a kill; swept by the next save
      step-00000500.rejected-…/  was the newest and did not verify; kept as evidence

A save is written under a name of its own by all workers, every file is fsynced and hashed, the
manifest is written last, and the directory renamed. `latest_good` trusts nothing but manifests
that verify, newest first; what does not verify is reported and passed over, never deleted.

Two runs that save into one folder, say because a worker of a lost attempt is still alive, make
each other's saves fail, but never a mixture: no name is used twice, and nothing that is good is
replaced.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import durable, group
from cluster.durable import FileDigest

if TYPE_CHECKING:
    import torch.distributed as dist

MANIFEST = "MANIFEST.json"
SCHEMA = 2
_NAME = re.compile(r"step-(\d{8,})")

log = logging.getLogger(__name__)

Write = Callable[[Path], dict[str, FileDigest]]


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


def publish(
    root: Path,
    step: int,
    write: Write,
    notes: dict[str, Any],
    workers: "dist.ProcessGroup | None" = None,
) -> Checkpoint:
    """Save collectively: every worker calls `write(directory)`; returns the checkpoint.

    Args:
        root: Folder of the run's checkpoints, on storage that all workers share.
        step: Of which there must be no good checkpoint yet, nor of a later one.
        write: Returns what it wrote by file name, fsynced and hashed.
        notes: JSON values; those of rank 0 are kept.
        workers: The group to agree in, the default one without.

    Raises:
        CheckpointError: On every worker, when any of them failed or was lost. No checkpoint of
            this step exists then, unless a worker was lost after the last byte was written.
    """
    final = root / f"step-{step:08d}"

    def together(what: str, act: Callable[[], Any], *, everywhere: bool = False) -> Any:
        return _together(what, act, workers, everywhere=everywhere)

    partial: Path = root / together("prepare", lambda: _prepare(root, final.name))
    try:
        files = together("write", lambda: write(partial), everywhere=True)
        together("commit", lambda: _commit(partial, final, step, files, notes))
    except CheckpointError as error:
        # A full disk can be reported as "input/output error", so the free space is said, too.
        room = _room(root)
        if group.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"{error}; {room}") from error
    size = sum(entry.bytes for part in files for entry in part.values())
    return Checkpoint(final, step, notes, size)


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
    if seal != _seal(manifest):
        raise CheckpointError(f"{MANIFEST} has changed since it was written")
    if manifest["schema"] != SCHEMA:
        raise CheckpointError(f"its layout is {manifest['schema']}, this version reads {SCHEMA}")
    entries = {name: FileDigest(**entry) for name, entry in manifest["files"].items()}
    _check(path, entries, contents=contents)
    size = sum(entry.bytes for entry in entries.values())
    return Checkpoint(path, manifest["step"], manifest["notes"], size)


def sweep(root: Path) -> None:
    """Remove what an interrupted save left; nobody may be saving there."""
    for left_over in root.glob(".step-*.partial"):
        remove(left_over)


def remove(path: Path) -> None:
    """Remove a checkpoint, or what an interrupted save left of one."""
    # Under another name first: a kill in the middle leaves nothing that looks like a checkpoint,
    # and a lost worker that still writes there meets an error.
    doomed = path.with_name(_unused_name("step-removed"))
    try:
        os.replace(path, doomed)
    except FileNotFoundError:
        return  # Somebody else removes it.
    shutil.rmtree(doomed)


def _unused_name(name: str) -> str:
    return f".{name}.{secrets.token_hex(8)}.partial"


def _together(
    what: str,
    act: Callable[[], Any],
    workers: "dist.ProcessGroup | None",
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
    try:
        answers = group.all_gather((outcome, problem), workers)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint not saved ({what}): a worker was lost: {problem or error}"
        ) from error
    problems = [problem for _, problem in answers if problem]
    if problems:
        raise CheckpointError(f"checkpoint not saved ({what} failed): " + "; ".join(problems))
    return [outcome for outcome, _ in answers] if everywhere else answers[0][0]


def _prepare(root: Path, name: str) -> str:
    """Make the folder to write into; returns its name."""
    durable.make_folder(root)
    try:
        sweep(root)
    except OSError as error:
        log.warning("what an interrupted save left in %s stays: %s", root, error)
    partial = root / _unused_name(name)
    partial.mkdir()
    return partial.name


def _commit(
    partial: Path, final: Path, step: int, files: list[dict[str, FileDigest]], notes: dict[str, Any]
) -> None:
    entries = {name: entry for part in files for name, entry in part.items()}
    if len(entries) < sum(map(len, files)):
        raise CheckpointError("two workers wrote a file of the same name")
    # Rank 0 must see what the others wrote: not so when each has the folder on its own disk.
    _check(partial, entries, contents=False)
    listed = {name: asdict(entry) for name, entry in entries.items()}
    # As it will be read: tuples become lists, for one.
    manifest = json.loads(
        json.dumps({"schema": SCHEMA, "step": step, "files": listed, "notes": notes})
    )
    sealed = {**manifest, "seal": _seal(manifest)}
    durable.write(partial / MANIFEST, [json.dumps(sealed, indent=1).encode()])
    for folder in sorted({path.parent for path in partial.rglob("*")} | {partial}):
        durable.sync_folder(folder)
    for path in steps(final.parent):
        if step_of(path) >= step:
            _set_aside(path)
    os.replace(partial, final)
    durable.sync_folder(final.parent)


def _set_aside(path: Path) -> None:
    """Rename a checkpoint that does not verify: it is kept, but must not be the newest."""
    try:
        verify(path)
    except CheckpointError:
        os.replace(path, path.with_name(f"{path.name}.rejected-{time.time_ns():x}"))
    else:
        raise CheckpointError(
            f"{path} is there already, and good. Another run saves there, or this one did not go "
            "on from it: move it away if it is not wanted"
        )


def _check(directory: Path, entries: dict[str, FileDigest], *, contents: bool) -> None:
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


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _room(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free / 1e6:,.0f} MB were free in {root}"
    except OSError as error:
        return f"{root} cannot be looked at: {error}"
