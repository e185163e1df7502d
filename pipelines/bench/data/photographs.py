"""The photographs of the benchmark: the same JPEGs, in the formats that the loaders read.

folder/originals/train/photographs/*.jpg   as given by the user, or generated
folder/files/train/photographs/*.jpg       shrunk to 500 px, JPEG q90
folder/tars/*.tar                          the files above, for WebDataset
folder/shards/                             the files above, byte for byte, as .beton
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convnextv2.data.collection import DataError
from convnextv2.data.pixels import decode
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.writing import WriteSettings, write_collection

SIDE, QUALITY, MADE_UP = 500, 90, 256
TARS = 4
CLASS = "photographs"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Photographs:
    """Prepared photographs; an epoch reads each `passes` times, to be long enough to time."""

    folder: Path
    count: int
    passes: int

    @property
    def files(self) -> Path:
        return self.folder / "files" / "train"

    @property
    def tars(self) -> list[str]:
        return sorted(map(str, (self.folder / "tars").glob("*.tar")))

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def epoch(self) -> int:
        """Images in an epoch."""
        return self.count * self.passes

    def order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Sample numbers of an epoch: every photograph `passes` times, shuffled."""
        numbers = np.arange(self.epoch, dtype=np.uint64) % np.uint64(self.count)
        return np.random.default_rng(epoch).permutation(numbers)

    def contents(self) -> list[bytes]:
        """The JPEG files, in the order of their names."""
        return [path.read_bytes() for path in sorted((self.files / CLASS).iterdir())]


def prepare(folder: Path, given: Path | None, epoch: int) -> Photographs:
    """Write the photographs in the folder `given`, or generated ones, in all formats.

    An epoch gets at least `epoch` images.

    Raises:
        DataError: When `given` holds no image files, or one that cannot be read.
    """
    files = folder / "files" / "train" / CLASS
    files.mkdir(parents=True)
    if given is None:
        make_up(files)
    else:
        paths = [path for path in given.rglob("*") if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise DataError(f"{given} holds no {', '.join(SUFFIXES)} files")
        for number, path in enumerate(sorted(paths)):
            (files / f"{number:05}.jpg").write_bytes(shrink(path))
    count = len(list(files.iterdir()))
    photographs = Photographs(folder, count, -(-epoch // count))
    _pack(photographs)
    _write(photographs)
    return photographs


def shrink(path: Path) -> bytes:
    """An image as a JPEG of at most 500 px, as the common recipes store them."""
    image = Image.fromarray(decode(path.read_bytes(), str(path)))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def make_up(folder: Path) -> None:
    """Generate images that cost as much to decode as photographs: smooth shapes, fine grain."""
    rng = np.random.default_rng(0)
    for number in range(MADE_UP):
        coarse = rng.integers(0, 255, (12, 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((SIDE, SIDE * 3 // 4), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (*np.asarray(smooth).shape[:2], 1))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=QUALITY)


def _pack(photographs: Photographs) -> None:
    """Write the files as WebDataset tars, distributed round-robin."""
    target = photographs.folder / "tars"
    target.mkdir()
    for number in range(TARS):
        with tarfile.open(target / f"{number:03}.tar", "w") as tar:
            for path in sorted((photographs.files / CLASS).iterdir())[number::TARS]:
                tar.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"0"))


def _write(photographs: Photographs) -> None:
    """Write the files as one shard, in which all are kept byte for byte."""
    root = photographs.files.parent
    source, selection = open_selected(root, Selection())
    settings = WriteSettings(num_shards=1)
    write_collection(source, str(root), photographs.shards, selection, settings)
