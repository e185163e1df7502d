"""Tars and image files made on the spot, for the tests of sources."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from convnextv2.data.collection import Members, Source, Stored


def jpeg(seed: int = 0, size: tuple[int, int] = (12, 8)) -> bytes:
    """A small photograph, different for each seed."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="jpeg", quality=85)
    return file.getvalue()


def jpegs(*names: str) -> dict[str, bytes]:
    """A photograph of its own for each name."""
    return {name: jpeg(seed) for seed, name in enumerate(names)}


def tar(files: Mapping[str, bytes], kind: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def listed(source: Source) -> list[Members]:
    return [source.members(part) for part in range(len(source.parts))]


def everything(source: Source) -> list[tuple[Stored, int]]:
    """All images with their labels, part by part."""
    found = []
    for part, members in enumerate(listed(source)):
        images = source.read(part, members)
        found += list(zip(images, members["label"].tolist(), strict=True))
    return found


def labels_by_file(source: Source) -> dict[str, str]:
    """Class of each image by its file name."""
    return {
        stored.name.replace("/", ":").rpartition(":")[2]: source.classes[label]
        for stored, label in everything(source)
    }
