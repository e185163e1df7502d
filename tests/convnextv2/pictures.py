"""Image collections made up in memory; importable, so that writer processes can unpickle them."""

from dataclasses import dataclass

import numpy as np

from convnextv2.data.sources import RGBImage, UnreadableImage


@dataclass(frozen=True)
class Pictures:
    """Smooth pictures that differ from each other, labels 0, 1, 2, 0, …"""

    shapes: tuple[tuple[int, int], ...]
    unreadable: tuple[int, ...] = ()
    classes: tuple[str, ...] = ("cat", "dog", "eel")

    def __len__(self) -> int:
        return len(self.shapes)

    def name(self, index: int) -> str:
        return f"picture-{index}"

    def label(self, index: int) -> int:
        return index % 3

    def image(self, index: int) -> RGBImage:
        if index in self.unreadable:
            raise UnreadableImage(f"{self.name(index)}: made up to be bad")
        height, width = self.shapes[index]
        rows, columns = np.mgrid[0:height, 0:width]
        waves = np.stack([rows / 5 + index, columns / 4 - index, (rows - columns) / 7], axis=-1)
        return np.round(127.5 + 127.5 * np.sin(waves)).astype(np.uint8)

    def fingerprint(self) -> list[object]:
        return [list(self.shapes)]
