"""How workers put a checkpoint on disk together: whole, or not at all.

It is written under a name of its own by all workers, every file is fsynced and hashed, the manifest
is written last, and the directory renamed (`cluster.checkpoint.store` has the layout).

Two runs that save into one folder, say because a worker of a lost attempt is still alive, never
make a mixture: no name is used twice, and nothing that is good is replaced. With a lease
(`cluster.resilience.lease`) the older one finds out, and stops.
"""

import json
import logging
import os
import shutil
import time
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
    """The file system failed: full, read-only, gone. Trying again later may help."""


class WorkerLost(CheckpointError):
    """A worker has gone, or does not answer the others any more."""


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
        step: Of which there must be no good checkpoint yet, nor of a later one.
        write: Returns what it wrote by file name, fsynced and hashed.
        notes: JSON values; those of rank 0 are kept.
        workers: The group to agree in, the default one without.
        lease: Of this attempt; rank 0 looks whether it still has it.
        again: Whether the same has been tried before. It may be there, and only the storage's
            answer was lost.

    Raises:
        CheckpointError: On every worker, when any of them failed or was lost: `StorageError` or
            `WorkerLost` if it was that. No checkpoint of this step exists then, unless it came
            after the last byte was written.
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
        # A full disk can be reported as "input/output error", so the free space is said, too.
        room = _room(root)
        if group.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        if lease is not None and not isinstance(error, WorkerLost | Superseded):
            # A newer attempt sweeps what this one writes: that is why it failed, then.
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
    """Run `act` on rank 0 (or everywhere) and agree on the outcome before anyone goes on."""
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
        # Trying again helps when nothing else is wrong.
        raised = kinds.pop() if len(kinds) == 1 else CheckpointError
        raise raised(f"checkpoint not saved ({what} failed): " + "; ".join(problems))
    return [outcome for outcome, *_ in answers] if everywhere else answers[0][0]


def _kind_of(error: Exception) -> type[CheckpointError | Superseded]:
    """What an error of one worker is raised as on all of them."""
    if isinstance(error, Superseded):
        return Superseded
    return StorageError if isinstance(error, OSError) else CheckpointError


def _prepare(root: Path, name: str, lease: Lease | None) -> str:
    """Make the folder to write into; returns its name."""
    durable.make_folder(root)
    generation = None
    if lease is not None:
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
    """What the files of all workers must be, sealed."""
    entries = {name: entry for part in files for name, entry in part.items()}
    if len(entries) < sum(map(len, files)):
        raise CheckpointError("two workers wrote a file of the same name")
    listed = {name: asdict(entry) for name, entry in entries.items()}
    # As it will be read: tuples become lists, for one.
    manifest = json.loads(
        json.dumps({"schema": SCHEMA, "step": step, "files": listed, "notes": notes})
    )
    return {**manifest, "seal": seal_of(manifest)}


def _commit(
    partial: Path, final: Path, manifest: Manifest, lease: Lease | None, again: bool
) -> None:
    # Rank 0 must see what the others wrote: not so when each has the folder on its own disk.
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
                _set_aside(path)
        os.replace(partial, final)
    durable.sync_folder(final.parent)


def _holds(path: Path, seal: str) -> bool:
    """Whether a checkpoint is there, whole, and of the very same content."""
    try:
        verify(path)
        return bool(json.loads((path / MANIFEST).read_text())["seal"] == seal)
    except CheckpointError:
        return False


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


def _room(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free / 1e6:,.0f} MB were free in {root}"
    except OSError as error:
        return f"{root} cannot be looked at: {error}"
