"""Checking shards: one byte that is not as it was written is found, wherever it lies."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ffcv.reader import Reader

from convnextv2.data.collection import DataError
from convnextv2.data.shards.check import check, describe
from convnextv2.data.shards.manifest import read_manifest, write_manifest
from convnextv2.data.writing import WriteSettings
from tests.convnextv2.data.fixtures.pictures import Pictures, write

SOURCE = Pictures((*((40 + n, 90 - 2 * n) for n in range(20)), (300, 200)), unreadable=(4,))
SETTINGS = WriteSettings(num_shards=2, max_unreadable=1, page_size=2 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(SOURCE, tmp_path, SETTINGS)
    return tmp_path


def shard(folder: Path, number: int) -> Path:
    return folder / read_manifest(folder).shards[number].name


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def image_at(path: Path, number: int) -> tuple[int, int]:
    """Where an image begins, and its bytes."""
    row = Reader(str(path)).alloc_table[number]
    return int(row["ptr"]), int(row["size"])


@pytest.mark.parametrize("decode", [False, True])
def test_whole_shards_have_no_problems(folder: Path, decode: bool) -> None:
    assert check(folder, decode=decode) == []


@pytest.mark.parametrize(
    "place",
    [
        lambda path: 8,  # The header,
        lambda path: 300,  # the field descriptors,
        lambda path: 2200,  # the records,
        lambda path: image_at(path, 3)[0] + image_at(path, 3)[1] // 2,  # an image,
        lambda path: image_at(path, 0)[0] - 1,  # the padding before the first page,
        lambda path: path.stat().st_size - 1,  # and the allocation table.
    ],
)
def test_one_flipped_bit_is_found_wherever_it_is(
    place: Callable[[Path], int], folder: Path
) -> None:
    path = shard(folder, 1)
    flip(path, place(path))
    problems = check(folder)
    assert len(problems) >= 1
    assert problems[0].startswith(f"{path} has changed since it was written (sha256 ")
    assert all(str(shard(folder, 0)) not in problem for problem in problems)
    flip(path, place(path))
    assert check(folder) == []


def test_decoding_names_the_damaged_image(folder: Path) -> None:
    path = shard(folder, 1)
    begin, size = image_at(path, 5)
    with path.open("r+b") as file:
        file.seek(begin + size // 2)
        file.write(bytes(size - size // 2))
    changed, damaged = check(folder, decode=True)
    assert changed.startswith(f"{path} has changed")
    first = read_manifest(folder).shards[0].samples
    assert damaged.startswith(f"{path}, image 5 (sample {first + 5}): ")


def test_shards_that_are_missing_or_cut_short(folder: Path) -> None:
    first, second = shard(folder, 0), shard(folder, 1)
    size = second.stat().st_size
    with second.open("r+b") as file:
        file.truncate(size - 24)
    first.unlink()
    problems = check(folder)
    assert problems[0] == f"{first} is missing"
    assert problems[1] == f"{second} has {size - 24:,} bytes, was written with {size:,}"


def test_classes_of_other_counts(folder: Path) -> None:
    manifest = read_manifest(folder)
    counts = manifest.class_counts
    write_manifest(folder, replace(manifest, class_counts=(counts[0] + 1, *counts[1:])))
    assert check(folder) == [f"class cat has {counts[0]} images, was written with {counts[0] + 1}"]


def test_without_a_manifest_there_is_nothing_to_check(tmp_path: Path) -> None:
    for look in (check, describe):
        with pytest.raises(DataError, match=r"has no manifest\.json"):
            look(tmp_path)


def test_the_summary_is_of_what_was_written(folder: Path) -> None:
    longest = sorted(max(shape) for n, shape in enumerate(SOURCE.shapes) if n != 4)
    facts = describe(folder)
    assert facts["images"] == len(longest)
    assert facts["classes"] == 3
    assert facts["shards"] == 2
    assert facts["skipped_images"] == 1
    assert facts["bytes"] == sum(path.stat().st_size for path in folder.glob("*.beton"))
    spread = {"least": longest[0], "most": 300, "median": np.median(longest)}
    assert facts["longest_side_pixels"] == spread
    counts = facts["images_per_class"]
    assert (counts["least"], counts["most"]) == (6, 7)
    assert facts["jpeg_share"] == 1.0


def test_the_summary_tells_pixels_from_jpegs(tmp_path: Path) -> None:
    write(Pictures(((20, 20),) * 9), tmp_path, WriteSettings(mode="raw"))
    assert describe(tmp_path)["jpeg_share"] == 0.0


def test_progress_is_told_shard_by_shard(folder: Path) -> None:
    told: list[tuple[float, str]] = []
    check(folder, decode=True, progress=lambda share, words: told.append((share, words)))
    names = sorted(path.name for path in folder.glob("*.beton"))
    words = [f"{what} {name}" for what in ("reading", "decoding") for name in names]
    assert told == list(zip((0, 0.25, 0.5, 0.75), words, strict=True))
