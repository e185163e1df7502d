"""Images to look at a model with: any folder, spread evenly over it, cut to one size."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convnextv2 import PathLike
from convnextv2.data.collection import DataError, RGBImage, UnreadableImage
from convnextv2.data.pixels import decode
from convnextv2.data.sources import IMAGE_SUFFIXES


@dataclass(frozen=True)
class ImageFiles:
    """Files (names below `root`) of any image format."""

    root: Path
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> RGBImage:
        """Decode to (H, W, 3); raises UnreadableImage."""
        path = self.root / self.files[index]
        try:
            return decode(path.read_bytes(), str(path))
        except OSError as error:
            raise UnreadableImage(f"{path}: {error}") from error


def open_images(root: PathLike, max_images: int) -> ImageFiles:
    """At most `max_images` under `root`, flat or in class folders (whose labels are not used).

    They are taken at equal distances in the order of their names, so that as many classes as
    possible are among them.

    Raises:
        DataError: When there are none.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file; give the folder it lies in" if root.exists() else "does not exist"
        raise DataError(f"image folder {root} {what}")
    if max_images < 1:
        raise DataError(f"max_images = {max_images} leaves no images; give at least 1")
    names = sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not names:
        raise DataError(f"no images under {root}; read are {', '.join(sorted(IMAGE_SUFFIXES))}")
    count = min(max_images, len(names))
    chosen = [names[number * len(names) // count] for number in range(count)]
    return ImageFiles(root, tuple(chosen))


def require_rgb(in_channels: int) -> None:
    """Raise ValueError unless a model of so many channels can be shown the images read here."""
    if in_channels != 3:
        raise ValueError(f"images are read as RGB, this model takes {in_channels} channels")


@dataclass
class Views:
    """Batches (B, height, width, 3; uint8) of a source; unreadable images are skipped.

    While the batches are read, `shown` collects the names of their images, and `skipped` the
    reasons why others were left out.
    """

    source: ImageFiles
    size: tuple[int, int]
    batch_size: int
    shown: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches.

        Raises:
            DataError: When not a single image could be read.
        """
        pending: list[RGBImage] = []
        for index in range(len(self.source)):
            try:
                pending.append(center_view(self.source.image(index), self.size))
                self.shown.append(self.source.files[index])
            except UnreadableImage as error:
                self.skipped.append(str(error))
            if len(pending) == self.batch_size or (pending and index + 1 == len(self.source)):
                yield torch.from_numpy(np.stack(pending))
                pending = []
        if len(self.skipped) == len(self.source):
            raise DataError(f"none of the {len(self.source)} images can be read: {self.skipped[0]}")


def center_view(image: RGBImage, size: tuple[int, int]) -> RGBImage:
    """The largest central box of the shape of `size` (height, width), resized to it (bicubic)."""
    from PIL import Image  # Here, so that a missing extra is reported by `convnextv2.data`.

    (height, width), (out_height, out_width) = image.shape[:2], size
    # Products before quotients: 61 / 224 * 224 is less than 61.
    box_height = max(1, int(min(height, width * out_height / out_width)))
    box_width = max(1, int(min(width, height * out_width / out_height)))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    box = Image.fromarray(image[top : top + box_height, left : left + box_width])
    return np.array(box.resize((out_width, out_height), Image.Resampling.BICUBIC))
