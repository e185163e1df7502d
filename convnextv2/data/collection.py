"""What the rest of the code knows of an image collection: parts, read from front to back.

A part is a tar, a class folder, a parquet file. Its members are listed once, 24 bytes each, without
reading pixels; whatever is decided about a collection (splits, subsets, shards) is decided on these
listings. Pixels are then read part by part in the order in which they lie there.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val"]
RGBImage = NDArray[np.uint8]
"""(height, width, 3)"""
Pixels = NDArray[np.uint8 | np.uint16]
"""(height, width, channels)"""


class PixelFormat(NamedTuple):
    """Number of channels, and bits of a value (8 or 16), of all images of a written collection."""

    channels: int = 3
    bits: int = 8

    @property
    def dtype(self) -> np.dtype[np.uint8 | np.uint16]:
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    @property
    def pixel_bytes(self) -> int:
        return self.channels * self.bits // 8

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels != 1)} of {self.bits} bits"


RGB = PixelFormat()
"""The format of JPEGs; images of all other formats are stored as pixels."""

UNLABELLED = -1
MEMBER = np.dtype([("key", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("label", "<i4")])
"""An image: hash of its name, offset in its part, size there in bytes, class."""
Members = NDArray[np.void]


class DataError(ValueError):
    """The image collection cannot be used as it is; the message says why and what would work."""


class UnreadableImage(DataError):
    """One image cannot be decoded."""


class Stored(NamedTuple):
    """An image as it lies in the source: a file's bytes, or pixels (H, W, channels)."""

    name: str
    content: bytes | Pixels


class Source(Protocol):
    """An image collection. Plain data: it travels to the processes that write its shards."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label; empty when images are unlabelled, or labels are only numbers."""

    @property
    def has_splits(self) -> bool:
        """Whether the collection has its own splits; if not, all of it is listed for each split."""

    @property
    def parts(self) -> Sequence[str]:
        """Names of the parts, for messages, in an order that does not depend on the machine."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the collection is read: sentences to be shown."""

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        """List a part, in the order in which it is read.

        Files that are no images are counted by their kind in `passed_over`.

        Raises:
            DataError: When the part is damaged, is a class without images, or has labels outside
                the classes.
        """

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        """Read these members of a part (a selection of its listing, in the listing's order)."""

    def fingerprint(self) -> str:
        """Hash of what identifies the content cheaply: names and sizes, not pixels."""


def name_key(name: str) -> int:
    """Hash of a member's name, which decides splits and subsets of a collection."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
