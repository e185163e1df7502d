"""Tar files read in place, by their headers.

An archive of a million images is listed without keeping an object per member, and a member is found
again by the offset of its header alone. Formats: ustar, GNU (long names), pax (path and size
records).
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from convnextv2.data.collection import DataError

_BLOCK = 512
_MOST_META = 1 << 20
_REGULAR = (b"0", b"\0", b"7")
_LINKS_AND_FOLDERS = (b"1", b"2", b"3", b"4", b"5", b"6")  # No data follows, whatever the size.
_FOLDER = b"5"
_LONG_NAME, _PAX = b"L", b"x"
_ABOUT_THE_NEXT = (_LONG_NAME, b"K", _PAX, b"g")


class Entry(NamedTuple):
    """A regular file: where its first header starts, and the offset and size of its data.

    `start` and `offset` are bytes from the beginning of the file on disk.
    """

    name: str
    start: int
    offset: int
    size: int


@dataclass(frozen=True)
class Archive:
    """A tar: a whole file, or bytes [start, end) of one. `name` is used in messages."""

    path: Path
    name: str
    start: int = 0
    end: int | None = None

    def open(self) -> BinaryIO:
        """Open the file; raises DataError when it cannot be opened."""
        try:
            return self.path.open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{self.path} cannot be opened: {error}") from error

    def entries(
        self, file: BinaryIO, start: int | None = None, passed_over: Counter[str] | None = None
    ) -> Iterator[Entry]:
        """Yield the regular files, starting with the header at `start`.

        Links and special files, which have no data, are counted in `passed_over`.

        Raises:
            DataError: When the bytes are not a tar, or the tar is damaged or cut short.
        """
        end = os.fstat(file.fileno()).st_size if self.end is None else self.end
        position = first = self.start if start is None else start
        path: str | None = None
        length: int | None = None
        while True:
            try:
                header = _read_header(file, position, end)
                if header is None:
                    return
                kind, data = header[156:157], position + _BLOCK
                size = 0 if kind in _LINKS_AND_FOLDERS else _number(header[124:136])
                if length is not None and kind not in _ABOUT_THE_NEXT:
                    size = length
                if data + size > end:
                    raise ValueError(f"cut short, {size:,} bytes should follow")
                if kind == _LONG_NAME:
                    path = _text(_read_meta(file, data, size).split(b"\0", 1)[0])
                elif kind == _PAX:
                    records = _pax(_read_meta(file, data, size))
                    path = _text(records["path"]) if "path" in records else path
                    length = int(records["size"]) if "size" in records else None
            except ValueError as error:
                what = "no tar" if position == self.start else "a damaged tar"
                raise DataError(f"{self.name} is {what}: byte {position:,}: {error}") from error
            following = data + -(-size // _BLOCK) * _BLOCK
            if kind not in _ABOUT_THE_NEXT:
                name = path if path is not None else _name(header)
                if kind in _REGULAR and not name.endswith("/"):
                    yield Entry(name, first, data, size)
                elif passed_over is not None and kind not in (*_REGULAR, _FOLDER):
                    passed_over["links or special files in a tar"] += 1
                path, length, first = None, None, following
            position = following

    def bytes_of(self, file: BinaryIO, entry: Entry) -> bytes:
        """Read a member's data; raises DataError when the file has become shorter."""
        content = os.pread(file.fileno(), entry.size, entry.offset)
        if len(content) < entry.size:
            raise DataError(f"{self.name} was cut short while it was read")
        return content


def _read_header(file: BinaryIO, position: int, end: int) -> bytes | None:
    """The header at `position`; None at the archive's end mark."""
    header = os.pread(file.fileno(), _BLOCK, position) if position + _BLOCK <= end else b""
    if len(header) < _BLOCK:
        raise ValueError("cut short, there is no end mark")
    if not any(header):
        return None
    if _number(header[148:156]) != _checksum(header):
        raise ValueError("no header is there")
    return header


def _checksum(header: bytes) -> int:
    # The checksum field itself counts as eight spaces.
    return sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int:
    """Octal digits or, for larger numbers, a big-endian number marked by its top bit."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if digits and not digits.isdigit():
        raise ValueError("no header is there")
    return int(digits or b"0", 8)


def _read_meta(file: BinaryIO, offset: int, size: int) -> bytes:
    if size > _MOST_META:
        raise ValueError(f"a name of {size:,} bytes")
    return os.pread(file.fileno(), size, offset)


def _pax(meta: bytes) -> dict[str, bytes]:
    """Records of `<length> <key>=<value>` and a newline; the length counts the whole record."""
    records = {}
    while meta.strip(b"\0"):
        digits, _, _ = meta.partition(b" ")
        length = int(digits)
        if length <= len(digits):
            raise ValueError(f"a record of {length} bytes")
        key, _, value = meta[len(digits) + 1 : length - 1].partition(b"=")
        records[key.decode()] = value
        meta = meta[length:]
    return records


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    # Only ustar has a prefix here; GNU stores other things in its place.
    return _text(prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name)


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
