"""How workers put a checkpoint on disk together: whole, or not at all.

It is written under a name of its own by all workers, every file is fsynced and hashed, the manifest
is written last, and the directory renamed (`cluster.checkpoint.store` has the layout).

Two runs that save into one folder, say because a worker of a lost attempt is still alive, make
each other's saves fail, but never a mixture: no name is used twice, and nothing that is good is
replaced.
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

if TYPE_CHECKING:
    import torch.distributed as dist

log = logging.getLogger(__name__)

Write = Callable[[Path], dict[str, FileDigest]]


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
    partial = root / unused_name(name)
    partial.mkdir()
    return partial.name


def _commit(
    partial: Path, final: Path, step: int, files: list[dict[str, FileDigest]], notes: dict[str, Any]
) -> None:
    entries = {name: entry for part in files for name, entry in part.items()}
    if len(entries) < sum(map(len, files)):
        raise CheckpointError("two workers wrote a file of the same name")
    # Rank 0 must see what the others wrote: not so when each has the folder on its own disk.
    check_files(partial, entries, contents=False)
    listed = {name: asdict(entry) for name, entry in entries.items()}
    # As it will be read: tuples become lists, for one.
    manifest = json.loads(
        json.dumps({"schema": SCHEMA, "step": step, "files": listed, "notes": notes})
    )
    sealed = {**manifest, "seal": seal_of(manifest)}
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


def _room(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free / 1e6:,.0f} MB were free in {root}"
    except OSError as error:
        return f"{root} cannot be looked at: {error}"
