"""FFCV's file format, written from front to back by one process.

FFCV's own writer must know the number of images and their order beforehand, loops for ever when a
worker dies, and writes an empty table when its last step fails. The format itself is simple:

    header | two field descriptors | records (24 bytes a sample) | pages of data | allocation table

Samples are numbered as they lie in the file, and none crosses a page.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from convnextv2.data.collection import RGB, PixelFormat
from convnextv2.data.ffcv_compat import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    FieldDescType,
    HeaderType,
)
from convnextv2.data.shards.mapped import RECORD, field_types
from convnextv2.data.writing.encode import Encoded

FIELD_NAMES = ("image", "label")


class BetonWriter:
    """Writes at most `capacity` samples to `path`; the header comes last, in `finish`."""

    def __init__(
        self, path: Path, capacity: int, page_size: int, pixel_format: PixelFormat = RGB
    ) -> None:
        self.page_size, self.field_types = page_size, field_types(pixel_format)
        self.records = np.zeros(capacity, RECORD)
        self.sizes = np.zeros(capacity, np.uint64)
        self.samples = 0
        self._page = bytearray()
        before = HeaderType.itemsize + 2 * FieldDescType.itemsize + self.records.nbytes
        self._position = -(-before // page_size) * page_size
        # Unbuffered, so that a full disk raises an error in the call that writes.
        self._file = path.open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, encoded: Encoded, label: int) -> None:
        """Add a sample, which must not be larger than a page."""
        if len(self._page) + len(encoded.data) > self.page_size:
            self._flush()
        record = self.records[self.samples]
        pointer = self._position + len(self._page)
        record["f0"] = (encoded.mode, encoded.width, encoded.height, pointer)
        record["f1"] = label
        self.sizes[self.samples] = len(encoded.data)
        self._page += encoded.data
        self.samples += 1

    def finish(self) -> None:
        """Write what is left and the tables, and at last the header."""
        if self._page:
            self._flush()
        table = np.zeros(self.samples, ALLOC_TABLE_TYPE)
        table["sample_id"] = np.arange(self.samples)
        table["ptr"] = self.records["f0"]["data_ptr"][: self.samples]
        table["size"] = self.sizes[: self.samples]
        self._write(self._position, table.tobytes())
        fields = np.zeros(2, FieldDescType)
        for field, name, type_id in zip(fields, FIELD_NAMES, self.field_types, strict=True):
            field["type_id"] = type_id
            field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        self._write(HeaderType.itemsize, fields.tobytes() + self.records[: self.samples].tobytes())
        header = np.zeros(1, HeaderType)
        header["version"], header["num_fields"] = CURRENT_VERSION, len(fields)
        header["page_size"], header["num_samples"] = self.page_size, self.samples
        header["alloc_table_ptr"] = self._position
        self._write(0, header.tobytes())

    def _flush(self) -> None:
        padding = bytes(self.page_size - len(self._page))
        self._write(self._position, bytes(self._page) + padding)
        self._position += self.page_size
        self._page.clear()

    def _write(self, position: int, data: bytes) -> None:
        self._file.seek(position)
        left = memoryview(data)
        # A disk that is nearly full accepts part of the data; the next write raises the error.
        while left:
            left = left[self._file.write(left) :]
