"""Writing .beton files: complete and verified, or not there at all.

FFCV's writer loops for ever when one of its processes dies, swallows errors of its final step
and writes in place. Here it runs in a child process that is watched, under a temporary name; the
file is read back, hashed, fsynced and renamed, and a manifest beside it says that it is whole.
"""

import hashlib
import json
import multiprocessing
import multiprocessing.synchronize
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convnextv2.data.sources import DataError, RGBImage, Source, UnreadableImage

WRITER_DIED = 3
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class WriteSettings:
    """How images are stored: FFCV's RGBImageField settings and the number of processes."""

    mode: Literal["raw", "jpg", "smart", "proportion"] = "jpg"
    max_resolution: int | None = None
    jpeg_quality: int = 90
    max_unreadable: int = 0
    num_workers: int = 1


@dataclass(frozen=True)
class BetonManifest:
    """What a finished .beton file holds; `skipped` lists (sample, reason) of empty places."""

    samples: int
    bytes: int
    sha256: str
    classes: list[str]
    skipped: list[tuple[int, str]]

    @property
    def usable(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Sample numbers that hold an image."""
        holes = [sample for sample, _ in self.skipped]
        return np.setdiff1d(np.arange(self.samples, dtype=np.uint64), np.array(holes, np.uint64))


def manifest_path(beton: Path) -> Path:
    return beton.with_name(beton.name + ".json")


def read_manifest(beton: Path) -> BetonManifest:
    """Read the manifest beside `beton`; raises DataError when the file was never finished."""
    path = manifest_path(beton)
    if not path.exists():
        raise DataError(f"{beton} has no manifest {path.name}: it was not written to the end")
    content = json.loads(path.read_text())
    return BetonManifest(**{**content, "skipped": [tuple(item) for item in content["skipped"]]})


def write_beton(
    source: Source,
    destination: Path,
    settings: WriteSettings,
    on_progress: Callable[[int], None] = lambda done: None,
) -> BetonManifest:
    """Write every image of `source` to `destination` and return its manifest.

    Unreadable images leave an empty place, are named in the manifest and are never served;
    more than `settings.max_unreadable` of them is an error. `on_progress` hears how many
    images are done.

    Raises:
        DataError: Too many unreadable images, or the file could not be written (full disk, a
            writer process died); nothing is left behind.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial")
    manifest_path(destination).unlink(missing_ok=True)
    _check_room(source, destination.parent, settings)
    try:
        skipped = _run_writer(source, partial, settings, on_progress)
        _verify(partial, len(source))
        digest = _sync_and_hash(partial)
        manifest = BetonManifest(
            len(source), partial.stat().st_size, digest, list(source.classes), skipped
        )
        os.replace(partial, destination)
        _write_json(manifest_path(destination), asdict(manifest))
    except OSError as error:
        raise DataError(f"writing {destination} failed: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
        partial.with_suffix(".log").unlink(missing_ok=True)
    return manifest


def _check_room(source: Source, folder: Path, settings: WriteSettings) -> None:
    """Refuse at once what cannot fit: the average of a few images is a fair forecast."""
    picks = np.linspace(0, len(source) - 1, min(len(source), 16)).astype(int)
    sizes = []
    for pick in picks:
        try:
            height, width = source.image(int(pick)).shape[:2]
        except UnreadableImage:
            continue
        if settings.max_resolution:
            shrink = min(1.0, settings.max_resolution / max(height, width))
            height, width = int(height * shrink), int(width * shrink)
        sizes.append(height * width * 3)
    # JPEG at quality 90 takes about a tenth of the raw bytes; half of that is surely too little.
    packed = 1.0 if settings.mode == "raw" else 0.05
    needed = int(np.mean(sizes) * packed * len(source)) if sizes else 0
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"disk full: {folder} has {free / 1e9:.1f} GB free, the file needs about "
            f"{needed / 1e9:.1f} GB; free some room, or set data.write.max_resolution"
        )


def _run_writer(
    source: Source, partial: Path, settings: WriteSettings, on_progress: Callable[[int], None]
) -> list[tuple[int, str]]:
    """Run FFCV's writer in a child process and watch it; returns the skipped samples."""
    context = multiprocessing.get_context("spawn")
    done, failures = context.Value("Q", 0), context.Queue()
    log = partial.with_suffix(".log")
    child = context.Process(
        target=_write_in_child, args=(source, partial, settings, done, failures, log), daemon=False
    )
    child.start()
    skipped: list[tuple[int, str]] = []
    try:
        while child.is_alive():
            child.join(POLL_SECONDS)
            on_progress(done.value)
            skipped += _drain(failures)
            if len(skipped) > settings.max_unreadable:
                raise _too_many_unreadable(source, skipped, settings.max_unreadable)
    finally:
        _stop_group(child)
    skipped += _drain(failures)
    if len(skipped) > settings.max_unreadable:
        raise _too_many_unreadable(source, skipped, settings.max_unreadable)
    if child.exitcode != 0:
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        reason = lines[-1] if lines else f"exit code {child.exitcode}"
        raise DataError(f"writing {partial.parent / partial.name[1:-8]} failed: {reason}")
    return sorted(skipped)


def _too_many_unreadable(source: Source, skipped: list[tuple[int, str]], limit: int) -> DataError:
    named = "\n".join(f"  {reason}" for _, reason in sorted(skipped)[:5])
    return DataError(
        f"{len(skipped)} of {len(source)} images cannot be read, more than "
        f"data.write.max_unreadable = {limit}:\n{named}"
    )


def _drain(failures: Any) -> list[tuple[int, str]]:
    items = []
    while not failures.empty():
        items.append(failures.get())
    return items


def _stop_group(child: Any) -> None:
    """End the writer with its own children; it leads a process group."""
    if child.is_alive():
        os.killpg(child.pid, 9)
        child.join()


class _Counted:
    """The dataset FFCV's processes index: counts, and keeps a bad image from ending the run."""

    def __init__(self, source: Source, done: "Synchronized[int]", failures: Any) -> None:
        self.source, self.done, self.failures = source, done, failures

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[RGBImage, int]:
        with self.done.get_lock():
            self.done.value += 1
        try:
            return self.source.image(int(index)), self.source.label(int(index))
        except UnreadableImage as error:
            self.failures.put((int(index), str(error)))
            return np.zeros((1, 1, 3), np.uint8), -1


def _write_in_child(
    source: Source,
    partial: Path,
    settings: WriteSettings,
    done: "Synchronized[int]",
    failures: Any,
    log: Path,
) -> None:
    os.setpgrp()
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    field = RGBImageField(
        write_mode=settings.mode,
        max_resolution=settings.max_resolution,
        jpeg_quality=settings.jpeg_quality,
    )
    writer = DatasetWriter(
        str(partial), {"image": field, "label": IntField()}, num_workers=settings.num_workers
    )
    threading.Thread(target=_die_with_workers, daemon=True).start()
    writer.from_indexed_dataset(_Counted(source, done, failures))
    failures.close()
    failures.join_thread()


def _die_with_workers() -> None:
    """End this process when a writer process of FFCV, or the parent, dies: FFCV would not."""
    parent = os.getppid()
    seen: dict[int, Any] = {}
    while os.getppid() == parent:
        seen |= {worker.pid: worker for worker in multiprocessing.active_children() if worker.pid}
        if any(worker.exitcode not in (None, 0) for worker in seen.values()):
            time.sleep(POLL_SECONDS)  # Its last words are on the way to the log.
            break
        time.sleep(POLL_SECONDS)
    sys.stderr.flush()
    for worker in seen.values():
        worker.kill()
    os._exit(WRITER_DIED)


def _verify(beton: Path, samples: int) -> None:
    """Read the file back: everything is there and the first image decodes.

    FFCV's page writes are unbuffered, so a disk that fills up can cut one short in silence.
    """
    from ffcv.reader import Reader

    reader = Reader(str(beton))
    table = reader.alloc_table
    end = int(reader.header["alloc_table_ptr"])
    whole = (
        len(reader.metadata) == samples
        and len(table) == samples
        and int((table["ptr"] + table["size"]).max()) <= end
        and end % int(reader.page_size) == 0
    )
    if not whole:
        raise DataError(
            f"{beton.parent} took only part of the file (disk full?): {len(table)} of "
            f"{samples} images arrived"
        )


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
