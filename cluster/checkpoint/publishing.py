"""Publishes a checkpoint that all workers write together: complete, or not at all.

All workers write into a directory with a unique name. Every file is fsynced and hashed, the
manifest is written last, and the directory is renamed (`cluster.checkpoint.store` has the layout).

If two runs save into one folder, for example because a worker of a lost attempt is still alive,
their files never mix: names are never reused, and a good checkpoint is never replaced. With a lease
(`cluster.resilience.lease`) the older attempt notices the newer one and stops.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import durable, group
from cluster.checkpoint.store import (
    MANIFEST,
    SCHEMA,
    Checkpoint,
    CheckpointError,
    check_files,
    seal_of,
    set_aside,
    step_of,
    steps,
    sweep,
    unused_name,
    verify,
)
from cluster.durable import FileDigest
from cluster.resilience.lease import Lease, Superseded

if TYPE_CHECKING:
    import torch.distributed as dist

log = logging.getLogger(__name__)

Write = Callable[[Path], dict[str, FileDigest]]
Manifest = dict[str, Any]


class StorageError(CheckpointError):
    """The file system failed: it is full, read-only or gone. A later try may succeed."""


class WorkerLost(CheckpointError):
    """A worker died, or does not answer the others any more."""


def publish(
    root: Path,
    step: int,
    write: Write,
    notes: dict[str, Any],
    workers: "dist.ProcessGroup | None" = None,
    lease: Lease | None = None,
    *,
    again: bool = False,
) -> Checkpoint:
    """Save collectively: every worker calls `write(directory)`; returns the checkpoint.

    Args:
        root: Folder of the run's checkpoints, on storage that all workers share.
        step: The step to save; there must be no good checkpoint of it or of a later step.
        write: Writes and fsyncs files, and returns their digests by file name.
        notes: JSON values to record; those of rank 0 are used.
        workers: The process group to use, by default the default group.
        lease: The lease of this attempt; rank 0 checks that it still holds it.
        again: Whether this save has been tried before. It may have succeeded, with only the
            storage's reply lost.

    Raises:
        CheckpointError: On every worker, when any of them failed or was lost; `StorageError` or
            `WorkerLost` where that was the cause. No checkpoint of this step exists then, unless
            the failure came after the last byte was written.
        Superseded: On every worker, when a newer attempt saves here.
    """
    final = root / f"step-{step:08d}"

    def together(what: str, act: Callable[[], Any], *, everywhere: bool = False) -> Any:
        return _together(what, act, workers, everywhere=everywhere)

    partial: Path = root / together("prepare", lambda: _prepare(root, final.name, lease))
    try:
        files = together("write", lambda: write(partial), everywhere=True)
        together(
            "commit",
            lambda: _commit(partial, final, _manifest(step, files, notes), lease, again),
        )
    except (CheckpointError, Superseded) as error:
        # A full disk may be reported as "input/output error", so the message has the free space.
        room = _room(root)
        if group.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        if lease is not None and not isinstance(error, WorkerLost | Superseded):
            # The cause may be a newer attempt, which removes what this one is writing.
            together("look for the lease", lease.check)
        raise type(error)(f"{error}; {room}") from error
    size = sum(entry.bytes for part in files for entry in part.values())
    return Checkpoint(final, step, notes, size)


def _together(
    what: str,
    act: Callable[[], Any],
    workers: "dist.ProcessGroup | None",
    *,
    everywhere: bool,
) -> Any:
    """Run `act` on rank 0 (or everywhere); all workers agree on the outcome before they go on."""
    outcome, problem = None, None
    kind: type[CheckpointError | Superseded] = CheckpointError
    if everywhere or group.rank() == 0:
        try:
            outcome = act()
        except Exception as error:
            problem = f"rank {group.rank()}: {type(error).__name__}: {error}"
            kind = _kind_of(error)
    try:
        answers = group.all_gather((outcome, problem, kind), workers)
    except RuntimeError as error:
        raise WorkerLost(
            f"checkpoint not saved ({what}): a worker was lost: {problem or error}"
        ) from error
    problems = {problem: kind for _, problem, kind in answers if problem}
    if problems:
        kinds = set(problems.values())
        # A retry can only help if all failures are of the same kind.
        raised = kinds.pop() if len(kinds) == 1 else CheckpointError
        raise raised(f"checkpoint not saved ({what} failed): " + "; ".join(problems))
    return [outcome for outcome, *_ in answers] if everywhere else answers[0][0]


def _kind_of(error: Exception) -> type[CheckpointError | Superseded]:
    """The type that an error of one worker is raised as on all of them."""
    if isinstance(error, Superseded):
        return Superseded
    return StorageError if isinstance(error, OSError) else CheckpointError


def _prepare(root: Path, name: str, lease: Lease | None) -> str:
    """Create the folder to write into, and return its name."""
    generation = None
    if lease is None:
        durable.make_folder(root)
    else:
        # Its folder exists. Where storage is unmounted, a new one would be on another disk, and
        # what is written there would be lost once the storage is back.
        lease.check()
        generation = lease.generation
    try:
        sweep(root, generation)
    except OSError as error:
        log.warning("what an interrupted save left in %s stays: %s", root, error)
    partial = root / unused_name(name, generation or 0)
    partial.mkdir()
    if lease is not None:
        try:
            lease.check()
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return partial.name


def _manifest(step: int, files: list[dict[str, FileDigest]], notes: dict[str, Any]) -> Manifest:
    """The sealed manifest of the files of all workers."""
    entries = {name: entry for part in files for name, entry in part.items()}
    if len(entries) < sum(map(len, files)):
        raise CheckpointError("two workers wrote a file of the same name")
    listed = {name: asdict(entry) for name, entry in entries.items()}
    # In the form in which it will be read: tuples become lists, for example.
    manifest = json.loads(
        json.dumps({"schema": SCHEMA, "step": step, "files": listed, "notes": notes})
    )
    return {**manifest, "seal": seal_of(manifest)}


def _commit(
    partial: Path, final: Path, manifest: Manifest, lease: Lease | None, again: bool
) -> None:
    # Rank 0 must see what the others wrote, which fails if the folder is on a local disk.
    entries = {name: FileDigest(**entry) for name, entry in manifest["files"].items()}
    check_files(partial, entries, contents=False)
    durable.write(partial / MANIFEST, [json.dumps(manifest, indent=1).encode()])
    for folder in sorted({path.parent for path in partial.rglob("*")} | {partial}):
        durable.sync_folder(folder)
    if lease is not None:
        lease.check()
    if again and _holds(final, manifest["seal"]):
        shutil.rmtree(partial)
    else:
        for path in steps(final.parent):
            if step_of(path) >= manifest["step"]:
                _set_aside_if_damaged(path)
        os.replace(partial, final)
    durable.sync_folder(final.parent)


def _holds(path: Path, seal: str) -> bool:
    """Whether a complete checkpoint with exactly this content exists."""
    try:
        verify(path)
        return bool(json.loads((path / MANIFEST).read_text())["seal"] == seal)
    except CheckpointError:
        return False


def _set_aside_if_damaged(path: Path) -> None:
    """Rename a checkpoint that fails verification, to keep it without it being the newest."""
    try:
        verify(path)
    except CheckpointError:
        set_aside(path)
    else:
        raise CheckpointError(
            f"{path} is there already, and good. Another run saves there, or this one did not go "
            "on from it: move it away if it is not wanted"
        )


def _room(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free / 1e6:,.0f} MB were free in {root}"
    except OSError as error:
        return f"{root} cannot be looked at: {error}"
