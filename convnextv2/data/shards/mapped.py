"""The .beton files of a folder, mapped into memory: nothing is read before it is needed.

FFCV's reader copies its tables into every process (48 bytes a sample) and its memory manager makes
Python dictionaries of them (525 bytes a sample). Here a process owns only one row per shard; the
24-byte records stay in the mapped files, in page cache that all processes of a node share.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnextv2 import PathLike
from convnextv2.data.collection import RGB, DataError, PixelFormat
from convnextv2.data.ffcv_compat import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    FieldDescType,
    HeaderType,
    IntField,
    RGBImageField,
    get_metadata_type,
)
from convnextv2.data.labels.classes import match_classes
from convnextv2.data.labels.label_sets import LabelSets, read_label_sets
from convnextv2.data.shards.manifest import Manifest

RECORD = get_metadata_type([RGBImageField(), IntField()])
"""What FFCV stores of a sample: f0 = (mode, width, height, data_ptr), f1 = label. 24 bytes."""
FIELD_TYPES = [2, 1]  # FFCV's numbers for these two fields
# Other images than RGB of 8 bits have a field type of our own, so that FFCV's reader refuses them.
BAND_FIELD_TYPES = [255, 1]
TABLE = np.dtype(
    [(name, "<u8") for name in ("first", "samples", "address", "bytes", "records", "page_size")]
)

Indices = NDArray[np.uint64]


class Shards:
    """Mapped shards; sample numbers run through them in order.

    Attributes:
        table: One row (`TABLE`) per shard, for compiled code (`convnextv2.data.decoding`).
        pixel_format: Of all images.
    """

    def __init__(
        self,
        paths: Sequence[PathLike],
        pixel_format: PixelFormat = RGB,
        numbers: NDArray[np.int32] | None = None,
        label_sets: LabelSets | None = None,
        num_classes: int = 0,
    ) -> None:
        """Map the files.

        With `numbers` (see `match_classes`), labels become `numbers[label]`. With `label_sets`,
        labels are numbers of these sets, which have `num_classes` classes.

        Raises:
            DataError: When one is not there, cut short, or not of this kind.
        """
        self.paths, self.pixel_format = [Path(path) for path in paths], pixel_format
        self.numbers, self.label_sets, self.num_classes = numbers, label_sets, num_classes
        self.table = np.zeros(len(paths), TABLE)
        self._maps: list[NDArray[np.uint8]] = []
        self._old: list[NDArray[np.uint8]] = []
        first = 0
        for number, path in enumerate(self.paths):
            mapped, row = _map(path, pixel_format)
            self._maps.append(mapped)
            self.table[number] = (first, *row)
            first += int(self.table[number]["samples"])
        self.samples = first

    def move(self, number: int, path: PathLike) -> None:
        """Read shard `number` from another file of the same content, from now on."""
        path = Path(path)
        mapped, row = _map(path, self.pixel_format)
        old = self.table[number]
        if row[0] != old["samples"] or row[2] != old["bytes"]:
            raise DataError(f"{path} is not the same as {self.paths[number]}")
        # The old map is kept, because other threads may still read from the old table.
        table = self.table.copy()
        table[number]["address"] = row[1]
        self._old.append(self._maps[number])
        self._maps[number] = mapped
        self.paths[number] = path
        self.table = table

    def records(self, number: int) -> NDArray[np.void]:
        """The records (`RECORD`) of shard `number`, in the mapped file."""
        row = self.table[number]
        begin = int(row["records"])
        end = begin + int(row["samples"]) * RECORD.itemsize
        mapped = self._maps[number]
        return mapped[begin:end].view(RECORD)

    def read(self, number: int, begin: int, end: int) -> bytes:
        """Bytes of the file of shard `number`."""
        return self._maps[number][begin:end].tobytes()

    def labels(self, samples: Indices | None = None) -> NDArray[np.int64]:
        """Labels of `samples`, by default of all of them."""
        if samples is None:
            parts = [self.records(number)["f1"] for number in range(len(self.table))]
            return self._renumbered(np.concatenate(parts))
        numbers = np.searchsorted(self.table["first"], samples, side="right") - 1
        labels = np.empty(len(samples), np.int64)
        for number in np.unique(numbers):
            chosen = numbers == number
            rows = samples[chosen] - self.table[number]["first"]
            labels[chosen] = self.records(int(number))["f1"][rows]
        return self._renumbered(labels)

    def _renumbered(self, labels: NDArray[np.signedinteger]) -> NDArray[np.int64]:
        return (labels if self.numbers is None else self.numbers[labels]).astype(np.int64)

    def targets(self, samples: Indices) -> NDArray[np.int64] | NDArray[np.float32]:
        """Targets of a classifier: labels (B,) or, with label sets, (B, classes) of 0 and 1."""
        labels = self.labels(samples)
        if self.label_sets is None:
            return labels
        return self.label_sets.multi_hot(labels, self.num_classes)

    def blocks(self) -> Indices:
        """First sample of every page of the files, and the number of samples at the end."""
        starts = []
        for number, row in enumerate(self.table):
            pages = self.records(number)["f0"]["data_ptr"] // row["page_size"]
            begins = np.flatnonzero(np.diff(pages, prepend=np.uint64(0)))
            starts.append(begins.astype(np.uint64) + row["first"])
        return np.concatenate([*starts, np.array([self.samples], np.uint64)])

    def describe(self, sample: int) -> str:
        """The file a sample lies in and its number there, for messages."""
        number = int(np.searchsorted(self.table["first"], sample, side="right")) - 1
        if not 0 <= sample < self.samples:
            return f"there is no sample {sample}, only {self.samples}"
        inside = sample - int(self.table[number]["first"])
        return f"{self.paths[number]}, image {inside} (sample {sample})"


def open_shards(
    folder: PathLike, manifest: Manifest, classes: Sequence[str] | None = None
) -> Shards:
    """Map the shards that `manifest` names.

    Labels are numbers of `classes`, where given: those of the shards are matched with them by name.

    Raises:
        DataError: When the shards are not as the manifest says, or have a class that `classes`
            lack.
    """
    folder = Path(folder)
    numbers = sets = None
    if classes is not None and tuple(classes) != manifest.classes:
        numbers = match_classes(
            manifest.classes, classes, of=str(folder), among="what they are used with"
        )
    if (file := manifest.label_sets) is not None:
        sets = read_label_sets(folder / file.name, file.sets, file.sha256)
        if numbers is not None:
            sets, numbers = sets.renumbered(numbers), None
    paths = [folder / shard.name for shard in manifest.shards]
    count = len(manifest.classes if classes is None else classes)
    shards = Shards(paths, manifest.pixel_format, numbers, sets, count)
    for shard, row in zip(manifest.shards, shards.table, strict=True):
        if (shard.samples, shard.bytes) != (row["samples"], row["bytes"]):
            raise DataError(
                f"{folder / shard.name} has {row['samples']} samples and {row['bytes']} bytes, "
                f"its manifest says {shard.samples} and {shard.bytes}; write it again"
            )
    return shards


def field_types(pixel_format: PixelFormat) -> list[int]:
    """Types of the fields of a file with such images."""
    return FIELD_TYPES if pixel_format == RGB else BAND_FIELD_TYPES


def _map(
    path: Path, pixel_format: PixelFormat
) -> tuple[NDArray[np.uint8], tuple[int, int, int, int, int]]:
    """Map a file; its samples, address, bytes, where its records begin, and its page size."""
    try:
        mapped = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    start = HeaderType.itemsize
    records = start + 2 * FieldDescType.itemsize
    if len(mapped) < records:
        raise DataError(f"{path} is cut short: {len(mapped)} bytes")
    header = mapped[:start].view(HeaderType)[0]
    known = header["version"] == CURRENT_VERSION and header["num_fields"] == 2
    if not known or header["page_size"] == 0:
        raise DataError(f"{path} is no .beton file of images and labels")
    fields = mapped[start:records].view(FieldDescType)
    if fields["type_id"].tolist() != field_types(pixel_format):
        image = "an RGB image" if pixel_format == RGB else f"an image of {pixel_format}"
        raise DataError(f"{path} holds other fields than {image} and an integer label")
    samples = int(header["num_samples"])
    # FFCV ends a file with a table of its images, which is empty where its writer failed.
    end = int(header["alloc_table_ptr"]) + samples * ALLOC_TABLE_TYPE.itemsize
    if samples == 0 or max(end, records + samples * RECORD.itemsize) > len(mapped):
        raise DataError(f"{path} is cut short: {len(mapped)} bytes for {samples} samples")
    address = mapped.__array_interface__["data"][0]
    return mapped, (samples, address, len(mapped), records, int(header["page_size"]))
