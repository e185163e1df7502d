"""Mapped shards: numbers that run through the files, and files that are not what they should be."""

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

from convnextv2.data.collection import DataError
from convnextv2.data.decoding import Problem, library
from convnextv2.data.shards.manifest import MANIFEST, read_manifest
from convnextv2.data.shards.mapped import RECORD, Shards, open_shards
from convnextv2.data.writing import WriteSettings
from tests.convnextv2.data.fixtures.pictures import Pictures, write

SHAPES = tuple((20 + n % 7, 30 - n % 5) for n in range(40))
SOURCE = Pictures(SHAPES)
MODES = WriteSettings(mode="raw", num_shards=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "set"
    write(SOURCE, folder, MODES)
    return folder


@pytest.fixture
def shards(folder: Path) -> Shards:
    return open_shards(folder, read_manifest(folder))


def test_sample_numbers_run_through_the_shards(shards: Shards) -> None:
    assert shards.samples == len(SHAPES)
    assert shards.table["first"].tolist() == [0, *np.cumsum(shards.table["samples"])[:-1].tolist()]
    images = {SOURCE.image(n).tobytes(): n for n in range(len(SHAPES))}
    found = []
    for number, row in enumerate(shards.table):
        for record in shards.records(number):
            field = record["f0"]
            size = 3 * int(field["height"]) * int(field["width"])
            begin = int(field["data_ptr"])
            picture = images[shards.read(number, begin, begin + size)]
            assert record["f1"] == picture % 3
            found.append(picture)
        assert row["samples"] > 0
    assert sorted(found) == list(range(len(SHAPES)))
    assert shards.labels().tolist() == [picture % 3 for picture in found]
    some = np.array([39, 0, 17, 17], np.uint64)
    assert shards.labels(some).tolist() == [found[n] % 3 for n in some]


def test_labels_are_matched_by_name_with_other_classes(folder: Path, shards: Shards) -> None:
    manifest, some = read_manifest(folder), np.array([39, 0, 17], np.uint64)
    other = open_shards(folder, manifest, ("eel", "fly", "cat", "dog"))
    for samples in (None, some):
        names = [manifest.classes[label] for label in shards.labels(samples)]
        assert [("eel", "fly", "cat", "dog")[label] for label in other.labels(samples)] == names
    with pytest.raises(DataError, match=r"1 of the 3 classes of .* are not among the 2 of .*: dog"):
        open_shards(folder, manifest, ("cat", "eel"))


def test_blocks_are_pages(shards: Shards) -> None:
    blocks = shards.blocks()
    assert blocks[0] == 0
    assert blocks[-1] == len(SHAPES)
    # All images of a shard fit one page here.
    assert blocks[:-1].tolist() == shards.table["first"].tolist()


def test_a_sample_is_described_by_its_file(shards: Shards, folder: Path) -> None:
    first = int(shards.table["first"][1])
    assert shards.describe(first + 2) == f"{shards.paths[1]}, image 2 (sample {first + 2})"
    assert shards.describe(40) == "there is no sample 40, only 40"


def test_a_shard_can_be_read_from_a_copy(shards: Shards, tmp_path: Path) -> None:
    copy = tmp_path / "copy.beton"
    copy.write_bytes(shards.paths[1].read_bytes())
    before, address = shards.labels().tolist(), int(shards.table["address"][1])
    table = shards.table
    shards.move(1, copy)
    assert shards.paths[1] == copy
    assert shards.labels().tolist() == before
    assert int(shards.table["address"][1]) != address
    # Who still reads by the old table reads the old file.
    assert int(table["address"][1]) == address
    with pytest.raises(DataError, match="not the same as"):
        shards.move(0, copy)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "cannot be read"),
        (lambda data: data[:100], "cut short: 100 bytes"),
        (lambda data: data[:2110], "cut short"),
        (lambda data: b"\xff" + data[1:], "no .beton file of images and labels"),
        (lambda data: data[:24] + b"\x05" + data[25:], "other fields than an RGB image"),
        (lambda data: data[:4] + bytes(4) + data[8:], "no .beton file of images and labels"),
        # FFCV's own writer leaves out the last table where it fails.
        (lambda data: data[: -24 * 5], "cut short: .* bytes for"),
        (lambda data: data + b"x", "its manifest says"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(
    folder: Path, tmp_path: Path, damage: object, words: str
) -> None:
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        (tmp_path / shard.name).write_bytes((folder / shard.name).read_bytes())
    path = tmp_path / manifest.shards[1].name
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=words) as error:
        open_shards(tmp_path, manifest)
    assert path.name in str(error.value)


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-00000-of-00003\.beton cannot be read"):
        open_shards(tmp_path, read_manifest(folder))


LIES: dict[str, dict[str, int]] = {
    "before everything": {"data_ptr": 2**64 - 1},
    "sums that run over": {"data_ptr": 2**64 - (8 << 20)},
    "behind the end": {"data_ptr": 1 << 40},
    "more pixels than a page": {"width": 65535, "height": 65535},
    "no pixels": {"height": 0},
    "an unknown mode": {"mode": 7},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_record_that_lies_is_damage(folder: Path, tmp_path: Path, lie: str) -> None:
    path = tmp_path / "lies.beton"
    path.write_bytes((folder / "train-00001-of-00003.beton").read_bytes())
    liar = 5
    records = np.memmap(path, RECORD, "r+", offset=records_at(path), shape=(liar + 1,))
    for name, value in LIES[lie].items():
        records[liar]["f0"][name] = value
    records.flush()
    shards = Shards([path])
    place = np.zeros(6, np.int64)
    found = [
        library().convnextv2_locate(
            ctypes.c_void_p(shards.table.ctypes.data), ctypes.c_int64(1), ctypes.c_uint64(sample),
            ctypes.c_int32(3), ctypes.c_void_p(place.ctypes.data),
        )
        for sample in (liar, liar + 1, 2**63)
    ]  # fmt: skip
    assert found == [Problem.DAMAGED, Problem.NONE, Problem.NOT_THERE]


def records_at(path: Path) -> int:
    """Where the records of a file begin."""
    return int(Shards([path]).table["records"][0])


@pytest.mark.parametrize("field", ["name", "sha256"])
def test_a_manifest_names_nothing_outside_its_folder(
    field: str, folder: Path, tmp_path: Path
) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["shards"][1][field] = "../../.bashrc"
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"must name files beside it, it names \.\./\.\./\.bashrc"):
        read_manifest(tmp_path)
