"""Image collections users bring: class folders and idx files (the MNIST family)."""

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convnextv2.data.collection import DataError, RGBImage, Split, UnreadableImage
from convnextv2.randomness import Draw, uniform

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
FOLDER_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test"),
}
IDX_NAMES: dict[Split, str] = {"train": "train", "val": "t10k"}
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class Source(Protocol):
    """Labelled images by index."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where the image comes from, for messages."""

    def label(self, index: int) -> int: ...

    def image(self, index: int) -> RGBImage:
        """Decode to (H, W, 3) uint8; raises UnreadableImage."""

    def fingerprint(self) -> list[object]:
        """What identifies the content cheaply, as JSON (names and sizes, not pixels)."""


@dataclass(frozen=True)
class FolderSource:
    """One folder per class."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.root / self.files[index][0])

    def label(self, index: int) -> int:
        return self.files[index][1]

    def image(self, index: int) -> RGBImage:
        try:
            with Image.open(self.root / self.files[index][0]) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I;16"):
                    # Pillow's convert would clip all but the darkest greys to white.
                    upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                return np.asarray(upright.convert("RGB"))
        except Exception as error:  # On damaged bytes Pillow raises nearly anything.
            raise UnreadableImage(f"{self.name(index)}: {error}") from error

    def fingerprint(self) -> list[object]:
        return [[name, label, (self.root / name).stat().st_size] for name, label in self.files]


@dataclass(frozen=True)
class IdxSource:
    """An idx image file and its labels; grey images become RGB."""

    path: Path
    classes: tuple[str, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def image(self, index: int) -> RGBImage:
        return np.repeat(self.images[index][:, :, None], 3, axis=2)

    def fingerprint(self) -> list[object]:
        return [self.path.name, self.path.stat().st_size, len(self)]


def open_source(root: Path, split: Split) -> Source:
    """Open the `split` of the collection at `root`, telling the layout from what lies there.

    Idx files (`train-images-idx3-ubyte[.gz]`, …), or class folders: under `train/` and `val/`
    where these exist, else one image in ten is held out for "val" by a hash of its name.

    Raises:
        DataError: When nothing usable is there.
    """
    if not root.exists():
        raise DataError(f"data folder {root} does not exist")
    if not root.is_dir():
        raise DataError(f"{root} is a file; give the folder that holds the class folders")
    if any(root.glob("*-images-idx3-ubyte*")):
        return open_idx(root, split)
    for name in FOLDER_NAMES[split]:
        if (root / name).is_dir():
            return scan_folders(root / name)
    if any((root / name).is_dir() for names in FOLDER_NAMES.values() for name in names):
        raise DataError(f"{root} has no folder for {split!r}; one of {FOLDER_NAMES[split]} is read")
    return hold_out(scan_folders(root), split)


def scan_folders(root: Path) -> FolderSource:
    """List `root/<class>/**/<image>`, classes in alphabetical order."""
    if not any(root.iterdir()):
        raise DataError(f"data folder {root} is empty")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if not folders:
        raise DataError(
            f"{root} has no class folders; expected one folder per class with its images inside"
        )
    files = tuple(
        (str(path.relative_to(root)), label)
        for label, folder in enumerate(folders)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not files:
        raise DataError(
            f"no images under {root}; read are {', '.join(sorted(IMAGE_SUFFIXES))} "
            f"in {len(folders)} class folders"
        )
    return FolderSource(root, tuple(folder.name for folder in folders), files)


def hold_out(source: FolderSource, split: Split, share: float = 0.1) -> FolderSource:
    """Split by a hash of each file's name, so that adding images moves none across."""
    keys = np.array([_hash_name(name) for name, _ in source.files], np.uint64)
    zero = np.zeros(1, np.uint64)
    held = uniform(zero, zero, keys, np.full(1, Draw.HOLD_OUT, np.uint64)) < share
    chosen = held if split == "val" else ~held
    files = tuple(file for file, keep in zip(source.files, chosen, strict=True) if keep)
    if not files:
        raise DataError(
            f"{source.root} holds {len(source)} images, too few to hold out a {split!r} split; "
            "make folders train/ and val/"
        )
    return FolderSource(source.root, source.classes, files)


def _hash_name(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def open_idx(root: Path, split: Split) -> IdxSource:
    """Read `<split>-images-idx3-ubyte[.gz]` and its labels."""
    images_path = _idx_file(root, f"{IDX_NAMES[split]}-images-idx3-ubyte")
    labels_path = _idx_file(root, f"{IDX_NAMES[split]}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images)} images but {len(labels)} labels")
    if not len(images):
        raise DataError(f"{images_path} holds no images")
    count = int(labels.max()) + 1
    names = FASHION_CLASSES if "fashion" in str(root).lower() else range(count)
    return IdxSource(images_path, tuple(str(name) for name in names), images, labels)


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


def _idx_file(root: Path, stem: str) -> Path:
    for path in (root / stem, root / f"{stem}.gz"):
        if path.exists():
            return path
    raise DataError(f"{root} has no {stem} (or .gz)")
