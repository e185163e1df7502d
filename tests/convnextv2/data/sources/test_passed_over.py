"""What the user hears of a collection when it is written."""

import tarfile
from collections import Counter
from pathlib import Path

import pytest

from convnextv2.data.collection import DataError
from convnextv2.data.selection import Selection
from convnextv2.data.sources import describe_kinds, open_source
from convnextv2.data.writing import WriteSettings, write_collection
from tests.convnextv2.data.archives import jpeg, put, tar


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
