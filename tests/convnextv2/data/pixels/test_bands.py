"""Collections of any number of channels, of 8 and 16 bits: stored, measured, and seen as RGB is."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ffcv.reader import Reader
from PIL import Image

from convnextv2.data.augment import Augment, ColorJitter, Mixing, RandAugment, RandomErasing
from convnextv2.data.collection import (
    MEMBER,
    DataError,
    Members,
    PixelFormat,
    Pixels,
    Stored,
    UnreadableImage,
    name_key,
)
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.loading.views import CenterView, RandomView, SquashView, View, choose_box
from convnextv2.data.selection import Selection
from convnextv2.data.shards.check import check, describe
from convnextv2.data.shards.manifest import Manifest, read_manifest
from convnextv2.data.shards.mapped import Shards, open_shards
from convnextv2.data.writing import WriteSettings, write_collection
from convnextv2.data.writing.encode import RAW, encode
from tests.convnextv2.data.fixtures.pictures import Pictures, write

HEIGHT, WIDTH, COUNT = 40, 60, 9
FORMATS = [PixelFormat(5, 16), PixelFormat(1, 8), PixelFormat(1, 16), PixelFormat(2, 8),
           PixelFormat(3, 16), PixelFormat(13, 16)]  # fmt: skip
EVERY = np.arange(COUNT, dtype=np.uint64)


@dataclass(frozen=True)
class Arrays:
    """Arrays in one part, all of one class; some may be `others`, by number."""

    form: PixelFormat
    others: tuple[tuple[int, PixelFormat], ...] = ()
    classes: tuple[str, ...] = ("only",)
    has_splits: bool = True
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Sequence[str]:
        return self.classes

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        listing = np.zeros(COUNT, MEMBER)
        listing["offset"], listing["size"] = range(COUNT), 100
        listing["key"] = [name_key(str(number)) for number in range(COUNT)]
        return listing

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        for number in members["offset"].tolist():
            yield Stored(f"array-{number}", self.array(number))

    def fingerprint(self) -> str:
        return repr(self)

    def array(self, number: int) -> Pixels:
        channels, bits = dict(self.others).get(number, self.form)
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
        waves = [np.sin(rows / (5 + c) + columns / (4 + number)) for c in range(channels)]
        white = (1 << bits) - 1
        values = np.round(white * (0.5 + 0.4 * np.stack(waves, axis=-1)))
        return values.astype(PixelFormat(channels, bits).dtype)


def written(
    folder: Path, form: PixelFormat, others: Any = (), notes: Any = None, **settings: Any
) -> Manifest:
    settings.setdefault("bits", 16 if form == (3, 16) else None)
    return write_collection(
        Arrays(form, others), "arrays", folder, Selection(),
        WriteSettings(channels=form.channels, **settings),
        note=(notes if notes is not None else []).append,
    )  # fmt: skip


def shown(folder: Path, view: View, **changes: Any) -> dict[int, Pixels]:
    """What a loader serves of every sample."""
    loader = BetonLoader(folder, batch_size=4, view=view, seed=3, **changes)
    return {
        int(index): image.numpy().copy()
        for batch in loader.batches(EVERY)
        for index, image in zip(batch.indices, batch.images, strict=True)
    }


def originals(folder: Path) -> dict[int, int]:
    """Number of the source's array, by sample."""
    manifest = read_manifest(folder)
    (row,) = open_shards(folder, manifest).records(0)["f0"][None]
    source, shards = Arrays(manifest.pixel_format), open_shards(folder, manifest)
    numbers = {source.array(number).tobytes(): number for number in range(COUNT)}
    size = HEIGHT * WIDTH * manifest.pixel_format.pixel_bytes
    starts = map(int, row["data_ptr"])
    return {n: numbers[shards.read(0, start, start + size)] for n, start in enumerate(starts)}


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_arrays_are_stored_as_they_are_and_measured(form: PixelFormat, tmp_path: Path) -> None:
    manifest = written(tmp_path, form)
    assert manifest == read_manifest(tmp_path)
    assert manifest.pixel_format == form
    assert sorted(originals(tmp_path).values()) == list(range(COUNT))
    pixels = np.concatenate(
        [Arrays(form).array(n).reshape(-1, form.channels) for n in range(COUNT)]
    )
    white = (1 << form.bits) - 1
    np.testing.assert_allclose(manifest.mean, pixels.mean(axis=0) / white, rtol=1e-12)
    np.testing.assert_allclose(manifest.std, pixels.std(axis=0) / white, rtol=1e-9)
    assert manifest.normalization == (manifest.mean, manifest.std, form.bits)
    assert check(tmp_path, decode=True) == []
    assert (describe(tmp_path)["channels"], describe(tmp_path)["bits"]) == form


def test_what_is_measured_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    one = written(tmp_path / "one", FORMATS[0])
    many = written(tmp_path / "many", FORMATS[0], num_shards=4)
    assert len(many.shards) == 4
    assert (one.mean, one.std) == (many.mean, many.std)


def test_a_channel_that_never_changes_is_not_divided_by_nothing(tmp_path: Path) -> None:
    flat = Pictures(((8, 8),) * 3)
    blank = Stored("blank", np.full((8, 8, 1), 7, np.uint8))
    source = type("Blank", (Pictures,), {"content": lambda self, index: blank.content})(flat.shapes)
    manifest = write(source, tmp_path, WriteSettings(channels=1))
    assert (manifest.mean, manifest.std) == ((7 / 255,), (1.0,))


def test_readers_of_rgb_do_not_take_them_for_rgb(tmp_path: Path) -> None:
    (shard,) = written(tmp_path, PixelFormat(3, 16)).shards
    with pytest.raises(ValueError, match="custom field image"):
        Reader(str(tmp_path / shard.name))
    with pytest.raises(DataError, match="other fields than an RGB image"):
        Shards([tmp_path / shard.name])


VIEWS: list[View] = [
    RandomView(size=(16, 12)),
    RandomView(size=(64, 80), scale=(0.1, 0.3)),
    RandomView(size=(16, 12), interpolation="area"),
    CenterView(size=(20, 20)),
    SquashView(size=(24, 24)),
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: f"{type(view).__name__}{view.size}")
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_views_are_pillows_and_opencvs_of_every_band(
    form: PixelFormat, view: View, tmp_path: Path
) -> None:
    written(tmp_path, form)
    numbers, kind = originals(tmp_path), view.parameters
    for sample, image in shown(tmp_path, view).items():
        assert (image.shape, image.dtype) == ((*view.size, form.channels), form.dtype)
        clock = np.array([3, 0], np.uint64)
        box = choose_box(*kind, clock, np.uint64(sample), HEIGHT, WIDTH, view.size)
        array = Arrays(form).array(numbers[sample]).astype(np.float32)
        bands = [resized(array[..., c], box, view) for c in range(form.channels)]
        expected = np.clip(np.stack(bands, axis=-1), 0, (1 << form.bits) - 1)
        expected = expected[:, ::-1] if box[4] else expected
        np.testing.assert_allclose(image.astype(float), expected, atol=0.51 + form.bits / 16)


def resized(band: Any, box: Any, view: View) -> Any:
    top, left, bottom, right = box[:4]
    size = view.size[::-1]
    if view.interpolation == "area":
        part = band[int(top) : int(bottom), int(left) : int(right)]
        return cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    if box[5]:
        return np.asarray(
            Image.fromarray(band).resize(
                size, Image.Resampling.BICUBIC, box=(left, top, right, bottom)
            )
        )
    part = Image.fromarray(band).crop((int(left), int(top), int(right), int(bottom)))
    return np.asarray(part.resize(size, Image.Resampling.BICUBIC))


def test_the_same_crops_and_flips_are_drawn_as_of_rgb(tmp_path: Path) -> None:
    """Three equal bands of 16 bits are seen as the RGB image of their upper halves."""
    view, rgb = RandomView(size=(16, 12)), Pictures(((HEIGHT, WIDTH),) * COUNT)
    write(rgb, tmp_path / "rgb", WriteSettings(mode="raw"))
    deep = type("Deep", (Pictures,), {"content": lambda self, n: self.image(n) * np.uint16(257)})
    write(deep(rgb.shapes), tmp_path / "deep", WriteSettings(channels=3, bits=16))
    ours, theirs = shown(tmp_path / "deep", view), shown(tmp_path / "rgb", view)
    for sample, image in ours.items():
        np.testing.assert_allclose(image / 257, theirs[sample], atol=1.01)


def test_crops_erasing_and_mixing_are_for_any_channels(tmp_path: Path) -> None:
    form = PixelFormat(5, 16)
    manifest = written(tmp_path, form)
    view = RandomView(size=(16, 16))
    plain = shown(tmp_path, view)
    erased = shown(tmp_path, view, augment=Augment(random_erasing=RandomErasing(1.0)))
    changed = np.stack([(plain[n] != erased[n]).any(axis=-1) for n in plain])
    assert 0.02 < changed.mean() < 0.4
    noise = np.concatenate([erased[n][changed[row]] for row, n in enumerate(plain)])
    assert len(np.unique(noise)) > 500
    white = 65_535
    np.testing.assert_allclose(noise.mean(axis=0) / white, manifest.mean, atol=0.08)
    np.testing.assert_allclose(noise.std(axis=0) / white, manifest.std, atol=0.08)
    constant = shown(
        tmp_path, view, augment=Augment(random_erasing=RandomErasing(1.0, mode="const"))
    )
    mean = np.rint(np.array(manifest.mean) * white)
    for row, n in enumerate(plain):
        assert (constant[n][changed[row]] == mean).all()


@pytest.mark.parametrize("mixing", [Mixing(0.8, 0.0), Mixing(0.0, 1.0)], ids=["mixup", "cutmix"])
def test_pairs_are_mixed_by_their_coefficients(mixing: Mixing, tmp_path: Path) -> None:
    written(tmp_path, PixelFormat(5, 16))
    loader = BetonLoader(
        tmp_path, batch_size=4, view=SquashView(size=(16, 16)), augment=Augment(mixing=mixing)
    )
    plain = shown(tmp_path, SquashView(size=(16, 16)))
    (batch,) = loader.batches(EVERY[:4])
    assert batch.coefficients is not None
    for row, share in enumerate(batch.coefficients.tolist()):
        own, partner = (plain[row].astype(float), plain[row ^ 1].astype(float))
        image = batch.images[row].numpy().astype(float)
        if mixing.cutmix:
            assert np.isclose((image == own).all(axis=-1).mean(), share, atol=0.02)
            assert ((image == own) | (image == partner)).all()
        else:
            np.testing.assert_allclose(image, share * own + (1 - share) * partner, atol=0.6)


@pytest.mark.parametrize(
    "augment", [Augment(color_jitter=ColorJitter()), Augment(rand_augment=RandAugment())]
)
def test_operations_on_colours_are_refused(augment: Augment, tmp_path: Path) -> None:
    written(tmp_path, PixelFormat(5, 16))
    with pytest.raises(ValueError, match="for RGB of 8 bits only, the images have 5 channels of"):
        BetonLoader(tmp_path, batch_size=4, view=VIEWS[0], augment=augment)


def test_large_ones_are_shrunk(tmp_path: Path) -> None:
    for form in FORMATS:
        settings = WriteSettings(channels=form.channels, bits=form.bits, max_resolution=30)
        encoded = encode(Stored("it", Arrays(form).array(0)), 0, settings)
        assert encoded[:3] == (RAW, 20, 30)
        band = np.ascontiguousarray(Arrays(form).array(0)[..., -1])
        expected = cv2.resize(band, (30, 20), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(encoded.pixels(form)[..., -1], expected)


class TestMisfits:
    """Images that do not go together, or not with what is asked for."""

    def test_another_number_is_refused_with_the_one_that_would_work(self, tmp_path: Path) -> None:
        words = r"5 channels of 16 bits \(array-\d\), and the settings ask for 3 channels; "
        words += r"model\.in_channels=5 would work \(data write: --channels 5"
        with pytest.raises(DataError, match=words):
            write_collection(Arrays(FORMATS[0]), "arrays", tmp_path, Selection(), WriteSettings())
        assert list(tmp_path.glob("*.beton")) == []

    @pytest.mark.parametrize("channels", [1, 4])
    def test_bits_that_nobody_set_are_not_spoken_of(self, channels: int, tmp_path: Path) -> None:
        few = f"{channels} channel{'s' if channels > 1 else ''}"
        words = rf"\(array-\d\), and the settings ask for {few}; model\.in_channels=5 would work "
        with pytest.raises(DataError, match=words + r"\(data write: --channels 5\)"):
            write_collection(
                Arrays(FORMATS[0]), "it", tmp_path, Selection(), WriteSettings(channels=channels)
            )

    def test_other_bits_are_refused_with_setting_and_option(self, tmp_path: Path) -> None:
        words = r"and the settings ask for 5 channels of 8 bits; "
        words += r"model\.in_channels=5, data\.write\.bits=16 would work "
        words += r"\(data write: --channels 5 --bits 16\)"
        with pytest.raises(DataError, match=words):
            written(tmp_path, PixelFormat(5, 16), bits=8)

    def test_a_mixture_is_refused_with_one_of_each(self, tmp_path: Path) -> None:
        words = r"different kinds: .*channels of .*array-3.*where the settings ask for 5 channels; "
        with pytest.raises(DataError, match=words):
            written(tmp_path, PixelFormat(5, 16), ((3, PixelFormat(4, 16)),))
        with pytest.raises(DataError, match=r"5 channels of 8 bits \(array-7\)"):
            written(tmp_path, PixelFormat(5, 16), ((7, PixelFormat(5, 8)),))

    def test_some_may_be_left_out(self, tmp_path: Path) -> None:
        manifest = written(
            tmp_path, PixelFormat(5, 16), ((3, PixelFormat(4, 16)),), max_unreadable=1
        )
        reason = "4 channels of 16 bits, and the collection has 5 channels of 16 bits"
        assert manifest.skipped == (("array-3", reason),)
        assert manifest.samples == COUNT - 1

    def test_levels_are_lost_with_a_warning_and_kept_on_demand(self, tmp_path: Path) -> None:
        notes: list[str] = []
        manifest = written(tmp_path / "8", PixelFormat(3, 16), notes=notes, bits=None)
        assert manifest.pixel_format == (3, 8)
        assert (manifest.mean, manifest.normalization.mean[0]) == ((), 0.485)
        (note,) = notes
        assert note.startswith("9 of 9 images looked at, such as array-")
        assert "levels are lost; data.write.bits=16 (data write: --bits 16) keeps them" in note
        kept = written(tmp_path / "16", PixelFormat(3, 16), notes=notes, bits=16)
        assert (kept.pixel_format, len(notes)) == ((3, 16), 1)

    def test_an_image_of_other_channels_is_unreadable(self) -> None:
        settings = WriteSettings(channels=2, bits=8)
        with pytest.raises(UnreadableImage, match="it: 1 channel of 8 bits, and the collection"):
            encode(Stored("it", Arrays(PixelFormat(1, 8)).array(0)), 0, settings)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"channels": 0}, "channels = 0; expected at least 1"),
            ({"bits": 12}, "bits = 12; expected 8 or 16"),
            ({"channels": 2, "mode": "smart", "smart_threshold": 9}, "mode smart is for RGB of 8"),
        ],
    )
    def test_settings_that_cannot_be(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(DataError, match=words):
            WriteSettings(**settings)
