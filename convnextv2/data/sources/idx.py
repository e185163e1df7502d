"""Idx files, of the MNIST family: all images of a split in one array, their labels in another."""

import gzip
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.collection import DataError, Members, Split, Stored
from convnextv2.data.sources.listing import hash_files, list_members

STEMS: dict[Split, str] = {"train": "train", "val": "t10k"}
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class IdxSource:
    """An idx file of images and that of their labels; an image's offset is its number."""

    images: Path
    labels: Path
    classes: tuple[str, ...]
    has_splits: bool = True
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.images)]

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        _, height, width = read_idx(self.images, 3).shape
        labels = read_idx(self.labels, 1)
        return list_members(
            (f"{self.images.name}:{number}", number, height * width, int(label))
            for number, label in enumerate(labels)
        )

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        images = read_idx(self.images, 3)
        for number in members["offset"]:
            grey = images[int(number)]
            yield Stored(f"{self.images}:{number}", grey[:, :, None])

    def fingerprint(self) -> str:
        return hash_files(self.images.parent, [self.images.name, self.labels.name], self.classes)


def open_idx(root: Path, split: Split) -> IdxSource:
    """Open `<split>-images-idx3-ubyte[.gz]` and its labels.

    Raises:
        DataError: When one is missing or damaged, or they do not belong together.
    """
    images_path = _find(root, f"{STEMS[split]}-images-idx3-ubyte")
    labels_path = _find(root, f"{STEMS[split]}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images)} images but {len(labels)} labels")
    if not len(images):
        raise DataError(f"{images_path} holds no images")
    is_fashion = "fashion" in str(root).lower()
    names = FASHION_CLASSES if is_fashion else map(str, range(int(labels.max()) + 1))
    return IdxSource(images_path, labels_path, tuple(names))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes (format: yann.lecun.com/exdb/mnist)."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        header = struct.unpack_from(">HBB", data)
        if header != (0, 8, dimensions):
            raise DataError(f"{path} is no idx file of {dimensions}-dimensional bytes")
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if body.size != np.prod(shape):
        raise DataError(f"{path} is cut short: {body.size} bytes for shape {shape}")
    return body.reshape(shape)


def _find(root: Path, stem: str) -> Path:
    for path in (root / stem, root / f"{stem}.gz"):
        if path.exists():
            return path
    raise DataError(f"{root} has no {stem} (or .gz)")
