"""Image collections made up in memory; importable, so that writer processes can unpickle them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convnextv2.data.collection import MEMBER, Members, RGBImage, Source, Stored, name_key
from convnextv2.data.selection import Selection
from convnextv2.data.shards.manifest import Manifest
from convnextv2.data.writing import WriteSettings, write_collection

CLASSES = ("cat", "dog", "eel")


@dataclass(frozen=True)
class Pictures:
    """Smooth pictures that differ from each other, labels 0, 1, 2, 0, …; a part per class."""

    shapes: tuple[tuple[int, int], ...]
    unreadable: tuple[int, ...] = ()
    classes: tuple[str, ...] = CLASSES
    has_splits: bool = True
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Sequence[str]:
        return self.classes

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        listing = np.zeros(len(range(part, len(self.shapes), len(self.classes))), MEMBER)
        listing["offset"] = range(part, len(self.shapes), len(self.classes))
        listing["key"] = [name_key(self.name(index)) for index in listing["offset"]]
        listing["size"] = [3 * np.prod(self.shapes[index]) for index in listing["offset"]]
        listing["label"] = part
        return listing

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        for index in members["offset"].tolist():
            yield Stored(self.name(index), self.content(index))

    def content(self, index: int) -> bytes | RGBImage:
        return b"no image" if index in self.unreadable else self.image(index)

    def fingerprint(self) -> str:
        return repr(self)

    def name(self, index: int) -> str:
        return f"picture-{index}"

    def image(self, index: int) -> RGBImage:
        height, width = self.shapes[index]
        rows, columns = np.mgrid[0:height, 0:width]
        waves = np.stack([rows / 5 + index, columns / 4 - index, (rows - columns) / 7], axis=-1)
        return np.round(127.5 + 127.5 * np.sin(waves)).astype(np.uint8)


def write(source: Source, folder: Path, settings: WriteSettings | None = None) -> Manifest:
    """Write all pictures to `folder` in this process."""
    return write_collection(
        source, "pictures", folder, Selection(), settings or WriteSettings(mode="raw")
    )
