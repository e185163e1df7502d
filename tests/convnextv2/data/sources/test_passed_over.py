"""What the user hears of a collection when it is written."""

import io
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from convnextv2.data.collection import DataError
from convnextv2.data.selection import Selection
from convnextv2.data.sources import describe_kinds, open_source
from convnextv2.data.writing import WriteSettings, write_collection
from tests.convnextv2.data.fixtures.archives import jpeg, put, tar


def written(root: Path, folder: Path) -> list[str]:
    """The notes of a writing."""
    notes: list[str] = []
    source = open_source(root, "train")
    write_collection(
        source, "photos", folder, Selection(), WriteSettings(mode="raw"), note=notes.append
    )
    return notes


def test_notes_of_the_source_and_counts_of_all_parts_are_told_once(tmp_path: Path) -> None:
    for name in ("images/0.jpg", "masks/0.png"):
        put(tmp_path / "photos" / name, jpeg())
    for name in ("images/0.xml", "images/1.avif", "masks/0.xml"):
        put(tmp_path / "photos" / name, "")
    assert written(tmp_path / "photos", tmp_path / "shards") == [
        *open_source(tmp_path / "photos", "train").notes,
        "train: passed over .xml (2), .avif (1)",
    ]
    (note,) = written(tmp_path / "photos", tmp_path / "shards")
    assert note.endswith("is complete already: nothing to do")


def animation(kind: str, frames: int) -> bytes:
    file, (first, *others) = io.BytesIO(), [Image.new("RGB", (8, 8), (90 * n, 0, 0)) for n in
                                            range(frames)]  # fmt: skip
    first.save(file, kind, save_all=True, append_images=others)
    return file.getvalue()


def tiff(pages: int, **further: Any) -> bytes:
    """Pages of 8 x 8 pixels; what is `further` said is of all but the first."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in range(pages):
            values = np.full((8, 8, 3), page, np.uint8)
            writer.write(values, photometric="rgb", metadata=None, **(further if page else {}))
    return file.getvalue()


SEVERAL = [tiff(3), *(animation(kind, 3) for kind in ("GIF", "PNG", "WEBP"))]
ONE = [tiff(1), tiff(2, subfiletype=1), *(animation(kind, 1) for kind in ("GIF", "PNG", "WEBP")),
       jpeg(), tiff(3)[: len(tiff(1)) + 20]]  # fmt: skip


def test_pages_and_frames_behind_the_first_are_told_with_one_such_file(tmp_path: Path) -> None:
    for number, content in enumerate([*SEVERAL, *ONE]):
        put(tmp_path / "photos/a" / f"{number}.png", content)
    (note,) = written(tmp_path / "photos", tmp_path / "shards")
    assert re.fullmatch(
        r"4 of 11 images looked at, such as \S+/[0-3]\.png, have further pages or frames, which "
        r"are not read: of each file the first is the image",
        note,
    )


def test_shards_without_an_image_say_what_they_hold(tmp_path: Path) -> None:
    put(tmp_path / "train-0.tar", tar({"0.flac": b"1", "0.json": b"{}", "1.flac": b"1"}))
    with pytest.raises(
        DataError, match=r"no images in .*train-0\.tar, only \.flac \(2\), samples w"
    ):
        written(tmp_path, tmp_path / "shards")


def test_links_in_a_tar_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "photos/0.jpg", jpeg())
    (tmp_path / "photos/1.jpg").hardlink_to(tmp_path / "photos/0.jpg")
    (tmp_path / "photos/2.jpg").symlink_to("0.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "photos", "photos")
    kinds: Counter[str] = Counter()
    assert len(open_source(tmp_path / "x.tar", "train").members(0, kinds)) == 1
    assert kinds == {"links or special files in a tar": 2}


def test_many_kinds_are_told_in_short() -> None:
    kinds = Counter({f".{number}": 2000 - number for number in range(11)})
    assert describe_kinds(kinds).startswith(".0 (2,000), .1 (1,999), ")
    assert describe_kinds(kinds).endswith(".7 (1,993) and 3 kinds more")
