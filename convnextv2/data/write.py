"""Writing .beton files: complete and verified, or not there at all.

FFCV's writer swallows errors of its final step and writes in place. Here it runs under a temporary
name in a process of its own (`convnextv2.data.watched_writer`); the file is read back, hashed,
fsynced and renamed, and a manifest beside it says that it is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnextv2.data.sources import DataError, Source, UnreadableImage
from convnextv2.data.watched_writer import WriteSettings, run_writer, writer_log


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
    _check_room(source, destination.parent, settings)
    try:
        skipped = run_writer(source, partial, settings, on_progress)
        _verify(partial, len(source))
        digest = _sync_and_hash(partial)
        manifest = BetonManifest(
            len(source), partial.stat().st_size, digest, list(source.classes), skipped
        )
        # What is there stays good until the new file is; then it must not pass for the new one.
        manifest_path(destination).unlink(missing_ok=True)
        os.replace(partial, destination)
        _write_json(manifest_path(destination), asdict(manifest))
    except OSError as error:
        raise DataError(f"writing {destination} failed: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
        writer_log(partial).unlink(missing_ok=True)
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
