"""Checks of where runs will go: room, durable writes, and locks for MLflow's store."""

import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from convnextv2.durable import atomically
from pipelines.doctor.check import GB, Check, Status
from pipelines.doctor.processes import run

NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "ceph", "gluster", "beegfs", "9p", "fuse.")


def disk(run_dir: Path) -> Check:
    free = shutil.disk_usage(_nearest(run_dir)).free
    found = f"{free / GB:.1f} GB free for {run_dir}"
    advice = "free some, or choose another run folder; ImageNet-1K and its checkpoints take 100 GB"
    status: Status = "fail" if free < 2 * GB else "warn" if free < 20 * GB else "ok"
    return Check("disk", status, found, "" if status == "ok" else advice)


def durable_writes(run_dir: Path) -> Check:
    """Checkpoints rely on it: write, flush and rename a file, then flush its folder."""
    try:
        with (
            tempfile.TemporaryDirectory(dir=_nearest(run_dir), prefix=".doctor-") as folder,
            atomically(Path(folder) / "whole") as new,
        ):
            new.write_bytes(b"x" * 4096)
    except OSError as error:
        return Check("durable writes", "fail", str(error), "choose a run folder you can write to")
    return Check("durable writes", "ok", f"fsync and rename work in {_nearest(run_dir)}")


def database(run_dir: Path) -> Check:
    """MLflow's store is sqlite: a second process must be kept out while one writes."""
    nearest = _nearest(run_dir)
    advice = "put the run folder on a local disk, or point MLFLOW_TRACKING_URI at a server"
    mounts = [m for m in psutil.disk_partitions(all=True) if nearest.is_relative_to(m.mountpoint)]
    kind = max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "this file system"
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".doctor-") as folder:
            holder = sqlite3.connect(f"{folder}/probe.db", isolation_level=None)
            with contextlib.closing(holder):
                holder.execute("BEGIN EXCLUSIVE")
                code, output = run(
                    sys.executable,
                    "-c",
                    "import sqlite3; sqlite3.connect("
                    f"{folder + '/probe.db'!r}, timeout=0).execute('BEGIN IMMEDIATE')",
                )
    except (OSError, sqlite3.Error) as error:
        return Check("database", "fail", f"sqlite on {kind}: {error}", advice)
    if code == 0 or "locked" not in output:
        return Check("database", "fail", f"sqlite locks do not hold on {kind}", advice)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        return Check("database", "warn", f"sqlite on {kind}, over the network", advice)
    return Check("database", "ok", f"sqlite locks hold on {kind}")


def _nearest(folder: Path) -> Path:
    """The folder, or its nearest parent that exists: the doctor creates no run folder."""
    candidates = (folder.resolve(), *folder.resolve().parents)
    return next(p for p in candidates if os.path.exists(p))  # Path.exists raises without permission


CHECKS: list[Callable[[Path], Check]] = [disk, durable_writes, database]
