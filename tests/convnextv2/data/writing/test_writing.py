"""Writing shards: FFCV's format and pixels, the same bytes every time, one plan for all of them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ffcv.fields import IntField, RGBImageField
from ffcv.reader import Reader
from numpy.typing import NDArray
from PIL import Image

from convnextv2.data.collection import DataError, RGBImage, Stored, UnreadableImage
from convnextv2.data.pixels import decode
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.shards.manifest import Manifest, read_manifest
from convnextv2.data.writing import WriteSettings, plan_collection, write_collection
from convnextv2.data.writing.disk import alone
from convnextv2.data.writing.encode import JPEG, RAW, Encoded, encode
from convnextv2.data.writing.plan import progress
from tests.convnextv2.data.fixtures.ffcvs_loader import served_by_ffcv
from tests.convnextv2.data.fixtures.pictures import Pictures, write

SHAPES = tuple((20 + 3 * (n % 11), 60 - n % 17) for n in range(90))
SOURCE = Pictures(SHAPES)
SQUARE = Pictures(((24, 32),) * 20)


def jpeg(pixels: RGBImage, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def images_of(path: Path) -> list[tuple[Encoded, int]]:
    """What FFCV's own reader finds in a shard: stored images and labels, in order."""
    reader, content = Reader(str(path)), path.read_bytes()
    found = []
    for row, place in zip(reader.metadata, reader.alloc_table, strict=True):
        image, start = row["f0"], int(place["ptr"])
        assert image["data_ptr"] == start
        data = content[start : start + int(place["size"])]
        found.append(
            (Encoded(image["mode"], image["height"], image["width"], data), int(row["f1"]))
        )
    return found


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file in a folder, hidden ones too."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def stored_by_ffcv(pixels: RGBImage, **settings: Any) -> Encoded:
    """What FFCV's field makes of an image."""
    field = RGBImageField(**settings)
    record = np.zeros(1, field.metadata_type)
    room: list[NDArray[np.uint8]] = []

    def malloc(size: int) -> tuple[int, NDArray[np.uint8]]:
        room.append(np.zeros(size, np.uint8))
        return 0, room[-1]

    field.encode(record, pixels, malloc)
    (image,) = record
    return Encoded(image["mode"], image["height"], image["width"], room[-1].tobytes())


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (33, 33), (300, 200)])
@pytest.mark.parametrize(
    "settings",
    [
        {"write_mode": "raw"},
        {"write_mode": "raw", "max_resolution": 50},
        {"write_mode": "jpg", "max_resolution": 64, "jpeg_quality": 83},
        {"write_mode": "smart", "smart_threshold": 14_000},
        {"write_mode": "proportion", "compress_probability": 1.0},
        {"write_mode": "proportion", "compress_probability": 0.0},
    ],
)
def test_images_are_stored_as_ffcv_stores_them(
    settings: dict[str, Any], shape: tuple[int, int]
) -> None:
    pixels = Pictures((shape,)).image(0)
    ours = WriteSettings(
        **{"mode" if name == "write_mode" else name: value for name, value in settings.items()}
    )
    assert encode(Stored("it", pixels), 7, ours) == stored_by_ffcv(pixels, **settings)


def test_ffcvs_own_loader_serves_what_was_written(tmp_path: Path) -> None:
    (shard,) = write(SQUARE, tmp_path).shards
    assert Reader(str(tmp_path / shard.name)).field_names == ["image", "label"]
    images, labels = served_by_ffcv(tmp_path / shard.name, np.arange(len(SQUARE.shapes)))
    expected = {SQUARE.image(n).tobytes(): n % 3 for n in range(len(SQUARE.shapes))}
    served = dict(zip((image.tobytes() for image in images), labels.tolist(), strict=True))
    assert served == expected


def test_fields_and_table_are_those_of_ffcvs_writer(tmp_path: Path) -> None:
    """All that differs from FFCV's own file is the order of the images."""
    from ffcv.writer import DatasetWriter

    (shard,) = write(SQUARE, tmp_path).shards
    ours = tmp_path / shard.name
    stored = [
        (np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3), label)
        for image, label in images_of(ours)
    ]
    theirs = tmp_path / "ffcv"
    fields = {"image": RGBImageField("raw"), "label": IntField()}
    DatasetWriter(str(theirs), fields, num_workers=1).from_indexed_dataset(stored)
    assert ours.read_bytes() == theirs.read_bytes()


def test_every_image_is_there_once_with_its_label_and_nothing_else(tmp_path: Path) -> None:
    settings = WriteSettings(mode="raw", num_shards=4, page_size=2 << 20)
    manifest = write(SOURCE, tmp_path, settings)
    found = [item for shard in manifest.shards for item in images_of(tmp_path / shard.name)]
    expected = {SOURCE.image(n).tobytes(): n % 3 for n in range(len(SHAPES))}
    assert len(found) == len(expected) == manifest.samples
    assert {image.data: label for image, label in found} == expected
    assert manifest.class_counts == (30, 30, 30)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "manifest.json",
        *(f"train-0000{n}-of-00004.beton" for n in range(4)),
    ]
    sizes = [sum(len(image.data) for image, _ in images_of(p)) for p in tmp_path.glob("*.beton")]
    assert max(sizes) - min(sizes) <= 2 * max(3 * height * width for height, width in SHAPES)


def test_classes_are_mixed_though_each_is_a_part(tmp_path: Path) -> None:
    (shard,) = write(SOURCE, tmp_path).shards
    labels = [label for _, label in images_of(tmp_path / shard.name)]
    assert set(labels[:12]) == {0, 1, 2}
    little = replace(WriteSettings(mode="raw"), shuffle_buffer_bytes=0)
    (shard,) = write(SOURCE, tmp_path / "unmixed", little).shards
    labels = [label for _, label in images_of(tmp_path / "unmixed" / shard.name)]
    assert (np.diff(labels) != 0).sum() == 2, "without a buffer they come as they lie"


def test_pages_hold_whole_images_in_their_order(tmp_path: Path) -> None:
    page = 2 << 20
    source = Pictures(((400, 700),) * 7)  # Two of 840 kB to a page.
    (shard,) = write(source, tmp_path, WriteSettings(mode="raw", page_size=page)).shards
    reader = Reader(str(tmp_path / shard.name))
    starts = reader.alloc_table["ptr"]
    assert (reader.alloc_table["sample_id"] == np.arange(7)).all()
    assert (starts // page).tolist() == [1, 1, 2, 2, 3, 3, 4]
    assert (np.diff(starts.astype(np.int64)) > 0).all()
    assert reader.header["alloc_table_ptr"] == 5 * page


def backwards(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    return map(function, reversed(list(items)))


@pytest.mark.parametrize("mode", ["jpg", "proportion"])
def test_written_twice_it_is_the_same_in_whatever_order(mode: Any, tmp_path: Path) -> None:
    settings = WriteSettings(mode=mode, num_shards=3, shuffle_buffer_bytes=50_000)
    first = write(SOURCE, tmp_path / "first", settings)
    second = write_collection(
        SOURCE, "pictures", tmp_path / "second", Selection(), settings, run=backwards
    )
    assert first == second
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    reseeded = write_collection(
        SOURCE, "pictures", tmp_path / "third", Selection(), settings, seed=1
    )
    assert reseeded.fingerprint != first.fingerprint


def test_a_share_becomes_jpegs_by_name(tmp_path: Path) -> None:
    source = Pictures(((16, 16),) * 600)
    settings = WriteSettings(mode="proportion", compress_probability=0.25)
    (shard,) = write(source, tmp_path, settings).shards
    modes = [image.mode for image, _ in images_of(tmp_path / shard.name)]
    assert set(modes) == {JPEG, RAW}
    # 600 draws of 0.25: five standard deviations are 53.
    assert abs(modes.count(JPEG) - 150) < 53


class TestJpegs:
    """JPEGs that come as JPEGs."""

    PIXELS = Pictures(((90, 120),)).image(0)

    def test_small_enough_ones_stay_byte_for_byte(self) -> None:
        content = jpeg(self.PIXELS, quality=71, progressive=True)
        settings = WriteSettings(max_resolution=120)
        assert encode(Stored("it", content), 0, settings) == Encoded(JPEG, 90, 120, content)

    def test_larger_ones_are_shrunk(self) -> None:
        content = jpeg(self.PIXELS)
        stored = encode(Stored("it", content), 0, WriteSettings(max_resolution=60))
        assert (stored.mode, stored.height, stored.width) == (JPEG, 45, 60)
        pixels = decode(content, "it")
        assert stored == stored_by_ffcv(pixels, write_mode="jpg", max_resolution=60)

    def test_rotated_ones_are_turned_and_stored_anew(self) -> None:
        exif = Image.Exif()
        exif[274] = 6
        content = jpeg(self.PIXELS, exif=exif)
        stored = encode(Stored("it", content), 0, WriteSettings())
        assert (stored.height, stored.width) == (120, 90)
        assert stored.data != content

    @pytest.mark.parametrize("mode", ["raw", "proportion"])
    def test_they_are_decoded_where_pixels_are_wanted(self, mode: Any) -> None:
        content = jpeg(self.PIXELS)
        settings = WriteSettings(mode=mode, compress_probability=0.0)
        stored = encode(Stored("it", content), 0, settings)
        assert stored == Encoded(RAW, 90, 120, decode(content, "it").tobytes())


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (1, 70_000)])
def test_sides_stay_at_least_a_pixel(shape: tuple[int, int]) -> None:
    stored = encode(Stored("it", Pictures((shape,)).image(0)), 0, WriteSettings(max_resolution=50))
    assert sorted((stored.height, stored.width)) == [1, 50]


def test_sides_beyond_ffcvs_format_are_shrunk_to_it() -> None:
    line = Pictures(((1, 70_000),)).image(0)
    assert encode(Stored("it", line), 0, WriteSettings(mode="raw")).width == 65_535


@pytest.mark.parametrize("side", [65_500, 65_501, 65_535, 70_000])
def test_sides_beyond_libjpegs_are_shrunk_to_them(side: int) -> None:
    strip = Pictures(((2, side),)).image(0)
    stored = encode(Stored("strip.png", strip), 0, WriteSettings())
    assert (stored.mode, stored.width) == (JPEG, 65_500)
    assert decode(stored.data, "it").shape == (stored.height, 65_500, 3)


def refused(*_: object) -> tuple[bool, tuple[()]]:
    return False, ()


def broken(*_: object) -> None:
    raise cv2.error("out of memory")


@pytest.mark.parametrize("encoder", [refused, broken])
def test_what_the_encoder_refuses_is_skipped_by_name(
    encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imencode", encoder)
    with pytest.raises(UnreadableImage, match=r"a/x\.png: the JPEG encoder refuses it at 8 x 6"):
        encode(Stored("a/x.png", np.zeros((6, 8, 3), np.uint8)), 0, WriteSettings())


def test_what_is_larger_than_a_page_is_refused_and_the_way_out_is_named() -> None:
    big = np.zeros((900, 900, 3), np.uint8)
    with pytest.raises(UnreadableImage, match=r"it: 2,430,000 bytes at 900 x 900.*max_resolution"):
        encode(Stored("it", big), 0, WriteSettings(mode="raw", page_size=2 << 20))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_resolution": 0}, "max_resolution = 0; expected 1 to 65535"),
        ({"jpeg_quality": 101}, "jpeg_quality = 101; expected 1 to 100"),
        ({"compress_probability": 1.5}, "compress_probability = 1.5; expected 0 to 1"),
        ({"num_shards": 0, "shard_bytes": 0}, "shard_bytes = 0.*num_shards = 0"),
        ({"page_size": 3 << 20}, "page_size = 3145728; expected a power of two"),
        ({"mode": "smart"}, "mode smart needs a smart_threshold"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        WriteSettings(**settings)


class TestUnreadable:
    """Images that cannot be used."""

    BAD = replace(SOURCE, unreadable=(3, 40, 41))

    def test_they_are_left_out_and_listed(self, tmp_path: Path) -> None:
        settings = WriteSettings(mode="raw", num_shards=3, max_unreadable=3)
        manifest = write(self.BAD, tmp_path, settings)
        assert [item.name for item in manifest.skipped] == ["picture-3", "picture-40", "picture-41"]
        assert all("none of the formats" in item.reason for item in manifest.skipped)
        assert manifest.samples == len(SHAPES) - 3
        assert manifest.class_counts == (29, 29, 29)
        found = [item for shard in manifest.shards for item in images_of(tmp_path / shard.name)]
        assert len(found) == manifest.samples
        assert read_manifest(tmp_path) == manifest

    def test_more_than_allowed_are_an_error_and_the_rest_is_kept(self, tmp_path: Path) -> None:
        settings = WriteSettings(mode="raw", num_shards=9, max_unreadable=1)
        words = r"2 images cannot be read, more than max_unreadable = 1:\n  picture-\d+: none of"
        with pytest.raises(DataError, match=words):
            write(self.BAD, tmp_path, settings)
        assert not (tmp_path / "manifest.json").exists()
        kept = {path: path.stat().st_ino for path in tmp_path.glob("*.beton")}
        assert kept
        manifest = write(self.BAD, tmp_path, replace(settings, max_unreadable=3))
        assert {path: path.stat().st_ino for path in kept} == kept, "and not written again"
        patient = replace(settings, max_unreadable=3)
        assert manifest == write(self.BAD, tmp_path / "at once", patient)

    def test_a_shard_of_nothing_else_is_not_there(self, tmp_path: Path) -> None:
        source = Pictures(((20, 20),) * 6, unreadable=(2, 5))
        settings = WriteSettings(mode="raw", num_shards=3, max_unreadable=2)
        manifest = write(source, tmp_path, settings)
        assert (len(manifest.shards), manifest.samples) == (2, 4)
        assert {path.name for path in tmp_path.glob("*.beton")} == {s.name for s in manifest.shards}

    def test_nothing_readable_is_an_error(self, tmp_path: Path) -> None:
        source = Pictures(((20, 20),) * 3, unreadable=(0, 1, 2))
        with pytest.raises(DataError, match="not one of the 3 images of pictures can be read"):
            write(source, tmp_path, WriteSettings(mode="raw", max_unreadable=3))


def bomb() -> bytes:
    buffer = BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


def test_each_kind_of_broken_file_is_listed_and_each_strange_one_is_kept(tmp_path: Path) -> None:
    pixels = Pictures(((40, 50),)).image(0)
    good = jpeg(pixels)
    png, webp, cmyk, palette, deep, alpha = (BytesIO() for _ in range(6))
    Image.fromarray(pixels).save(png, "PNG")
    Image.fromarray(pixels).save(webp, "WEBP")
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    Image.fromarray(pixels).convert("P").save(palette, "PNG")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(deep, "PNG")
    Image.fromarray(np.dstack([pixels, pixels[:, :, 0]])).save(alpha, "PNG")
    files = {
        "good/plain.jpg": good,
        "good/png.jpg": png.getvalue(),
        "good/webp.jpg": webp.getvalue(),
        "good/cmyk.jpg": cmyk.getvalue(),
        "good/palette.png": palette.getvalue(),
        "good/deep.png": deep.getvalue(),
        "good/alpha.png": alpha.getvalue(),
        "good/row.jpg": jpeg(pixels[:1]),
        "good/dot.jpg": jpeg(pixels[:1, :1]),
        "bad/cut.jpg": good[: len(good) // 2],
        "bad/cut.png": png.getvalue()[:-20],
        "bad/empty.jpg": b"",
        "bad/text.jpg": b"404 not found",
        "bad/bomb.png": bomb(),
        "bad/noise.jpg": good[:300] + bytes(100) + good[400:],
    }
    for name, content in files.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    source, selection = open_selected(tmp_path / "photos", Selection(val_fraction=1e-9))
    notes: list[str] = []
    manifest = write_collection(
        source, "photos", tmp_path / "out", selection, WriteSettings(max_unreadable=6),
        note=notes.append,
    )  # fmt: skip
    (note,) = notes
    assert "deep.png" in note
    assert "levels are lost" in note
    skipped = {Path(item.name).name: item.reason for item in manifest.skipped}
    assert set(skipped) == {Path(name).name for name in files if name.startswith("bad")}
    assert all(reason and not reason.startswith("/") for reason in skipped.values())
    assert manifest.classes == ("bad", "good")
    assert manifest.class_counts == (0, 9)


class TestFolder:
    """What is in the folder already."""

    SETTINGS = WriteSettings(mode="raw", num_shards=2)

    def test_what_is_complete_is_left_alone(self, tmp_path: Path) -> None:
        first, before = write(SOURCE, tmp_path, self.SETTINGS), contents(tmp_path)
        inodes = {path: path.stat().st_ino for path in tmp_path.iterdir()}
        notes: list[str] = []
        again = write_collection(
            SOURCE, "pictures", tmp_path, Selection(), self.SETTINGS, note=notes.append
        )
        assert again == first
        assert contents(tmp_path) == before
        assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == inodes
        assert notes == [f"{tmp_path} is complete already: nothing to do"]

    @pytest.mark.parametrize(
        ("source", "selection", "settings"),
        [
            (SQUARE, Selection(), SETTINGS),
            (SOURCE, Selection(max_images=5), SETTINGS),
            (SOURCE, Selection(), replace(SETTINGS, num_shards=3)),
        ],
    )
    def test_another_collection_is_refused(
        self, source: Pictures, selection: Selection, settings: WriteSettings, tmp_path: Path
    ) -> None:
        write(SOURCE, tmp_path, self.SETTINGS)
        before = contents(tmp_path)
        with pytest.raises(DataError, match="holds another collection, or one of other settings"):
            write_collection(source, "pictures", tmp_path, selection, settings)
        assert contents(tmp_path) == before

    def test_beginnings_of_another_make_way_with_a_note(self, tmp_path: Path) -> None:
        bad = replace(SOURCE, unreadable=(88,))
        with pytest.raises(DataError, match="picture-88"):
            write(bad, tmp_path, WriteSettings(mode="raw", num_shards=30))
        assert list(tmp_path.glob("*-of-00030.beton"))
        (tmp_path / "mine.beton").write_text("not ours to remove")
        notes: list[str] = []
        manifest = write_collection(
            SOURCE, "pictures", tmp_path, Selection(), self.SETTINGS, note=notes.append
        )
        assert notes == [f"removed what {tmp_path} had of another collection, or of other settings"]
        names = {shard.name for shard in manifest.shards} | {"manifest.json", "mine.beton"}
        assert {path.name for path in tmp_path.iterdir()} == names

    def test_a_plan_counts_what_is_written_by_it(self, tmp_path: Path) -> None:
        planned = plan_collection(SOURCE, tmp_path, Selection(), self.SETTINGS)
        assert not list(tmp_path.glob("*.beton"))
        assert not (tmp_path / "manifest.json").exists()
        manifest = write(SOURCE, tmp_path, self.SETTINGS)
        assert planned == manifest.census
        assert planned.classes == SOURCE.classes
        assert sum(planned.class_counts) == planned.images == len(SHAPES)
        # Of what is complete, the manifest tells it.
        assert plan_collection(SOURCE, tmp_path, Selection(), self.SETTINGS) == planned

    def test_one_process_writes_at_a_time(self, tmp_path: Path) -> None:
        with (
            alone(tmp_path, pytest.fail),
            pytest.raises(DataError, match=f"another process is writing to {tmp_path}"),
        ):
            write(SOURCE, tmp_path)
        assert write(SOURCE, tmp_path).samples == len(SHAPES)

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match=r"writing .*/file/shards failed: .*Not a directory"):
            write(SOURCE, tmp_path / "file" / "shards")


def test_a_selection_is_written_and_told(tmp_path: Path) -> None:
    selection = Selection(split="val", classes=("eel", "cat"), labels_per_class=4)
    manifest = write_collection(SOURCE, "pictures", tmp_path, selection, WriteSettings(mode="raw"))
    assert (manifest.split, manifest.classes, manifest.class_counts) == (
        "val",
        ("cat", "eel"),
        (4, 4),
    )
    assert manifest.shards[0].name == "val-00000-of-00001.beton"
    assert read_manifest(tmp_path).selection["labels_per_class"] == 4
    images = {image.data: label for image, label in images_of(tmp_path / manifest.shards[0].name)}
    originals = {SOURCE.image(n).tobytes(): n % 3 for n in range(len(SHAPES))}
    assert {originals[data] for data in images} == {0, 2}
    assert all(label == (originals[data] == 2) for data, label in images.items())


def test_progress_is_told_from_outside(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = [progress(tmp_path)]

    def watched(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield function(item)
            seen.append(progress(tmp_path))

    write_collection(
        SOURCE,
        "pictures",
        tmp_path,
        Selection(),
        WriteSettings(mode="raw", num_shards=3),
        run=watched,
    )
    planned = [total for _, total in seen]
    assert planned[0] == 0
    assert planned[-3:] == [len(SHAPES)] * 3
    done = [count for count, _ in seen]
    assert 0 < done[-3] < done[-2] < done[-1] == len(SHAPES)


def test_the_number_of_shards_follows_from_their_size(tmp_path: Path) -> None:
    total = sum(3 * height * width for height, width in SHAPES)
    settings = WriteSettings(mode="raw", shard_bytes=total // 5)
    manifest: Manifest = write(SOURCE, tmp_path, settings)
    assert len(manifest.shards) in (4, 5, 6)
