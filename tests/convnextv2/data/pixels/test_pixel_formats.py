"""Pixel formats whose range, polarity or alpha is unusual, and files that are damaged or exotic."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from convnextv2.data.collection import Pixels, UnreadableImage
from convnextv2.data.pixels import decode, decode_bands
from tests.convnextv2.data.pixels.test_pixels import smooth, stored, unreadable, without_marker

GREY = np.arange(0, 256, 255 // 51, dtype=np.uint8)[:48].reshape(6, 8) + np.uint8(20)
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
WHITE = 255


def tiff(values: NDArray[Any], **options: Any) -> bytes:
    """A TIFF of (H, W) or, without a word about the layout, (H, W, bands); black is 0."""
    file = io.BytesIO()
    layout = {"photometric": "minisblack"}
    if values.shape[2:] == (1,):
        values = values[..., 0]
    if values.ndim == 3:
        layout["planarconfig"] = "contig"
    tifffile.imwrite(file, values, metadata=None, **(layout | options))
    return file.getvalue()


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    checksum = zlib.crc32(kind + data) ^ damage
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png16(values: Pixels, *chunks: bytes) -> bytes:
    """A PNG of 16 bits; Pillow writes only grey ones."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


def deep(values: Pixels, bits: int) -> Pixels:
    """8-bit values as a camera of so many bits has them, in 16."""
    return (values.astype(np.uint16) << (bits - 8)).astype(np.uint16)


def npy(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


WRITERS: dict[str, Callable[[Pixels], bytes]] = {
    "png": png16,
    "tiff": tiff,
    "tiff lzw": lambda values: tiff(values, compression="lzw", predictor=True),
    "npy": npy,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("picture", [GREY[..., None], RGB], ids=["grey", "rgb"])
def test_the_depth_is_the_smallest_that_holds_the_largest_value(
    picture: Pixels, bits: int, kind: str
) -> None:
    shown = decode(WRITERS[kind](deep(picture, bits)), "x")
    np.testing.assert_array_equal(shown, np.broadcast_to(picture, shown.shape))


def test_a_declared_depth_counts_where_values_keep_to_it() -> None:
    dark = deep(GREY[..., None] // 8, 12)  # Its largest value would fit 10 bits.
    expected = np.broadcast_to(GREY[..., None] // 8, (*GREY.shape, 3))
    declared = chunk(b"sBIT", b"\x0c")
    assert decode(png16(dark), "x").max() > 4 * expected.max() - 4
    np.testing.assert_array_equal(decode(png16(dark, declared), "x"), expected)
    for tag in (281, 341):  # MaxSampleValue, SMaxSampleValue
        told = tiff(dark[..., 0], extratags=[(tag, 3, 1, 4095, True)])
        np.testing.assert_array_equal(decode(told, "x"), expected)
    # PNG's own rule: values of fewer significant bits fill all 16.
    full = png16(deep(GREY[..., None], 16), declared)
    np.testing.assert_array_equal(decode(full, "x")[..., 0], GREY)


def test_packed_bits_are_read() -> None:
    twelve = deep(GREY // 8, 12)
    content = tiff(twelve, bitspersample=12)
    np.testing.assert_array_equal(decode(content, "x")[..., 0], GREY // 8)


@pytest.mark.parametrize("bits", [1, 8, 12, 16])
def test_white_may_be_zero(bits: int) -> None:
    values: NDArray[Any] = GREY >= 128 if bits == 1 else GREY if bits == 8 else deep(GREY, bits)
    shown = decode(tiff(values, photometric="miniswhite"), "x")[..., 0].astype(int)
    expected = np.where(GREY >= 128, 0, WHITE) if bits == 1 else WHITE - GREY.astype(int)
    # White of 12 bits is 4095, and 4095 - 4080 is a 255th of it.
    assert np.abs(shown - expected).max() <= (bits == 12)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("picture", [GREY[..., None], RGB], ids=["grey", "rgb"])
@pytest.mark.parametrize("kind", ["png", "tiff", "premultiplied"])
def test_what_is_transparent_lies_on_white(kind: str, picture: Pixels, bits: int) -> None:
    opacity = np.full_like(GREY, 51)
    opacity[0] = WHITE
    with_alpha = np.dstack([picture, opacity])
    if kind == "premultiplied":
        with_alpha[1:, :, :-1] = picture[1:] // 5
    values = with_alpha if bits == 8 else deep(with_alpha, bits)
    if kind == "png":
        modes = {2: "LA", 4: "RGBA"}
        small = stored(Image.fromarray(with_alpha, modes[with_alpha.shape[2]]), "PNG")
        content = small if bits == 8 else png16(values)
    else:
        extra = "assocalpha" if kind == "premultiplied" else "unassalpha"
        colours = "rgb" if picture.shape[2] == 3 else "minisblack"
        content = tiff(values, photometric=colours, extrasamples=[extra])
    shown = decode(content, "x").astype(int)
    expected = np.rint(picture * 0.2 + WHITE * 0.8)
    expected[0] = picture[0]
    assert np.abs(shown - expected).max() <= 1


@pytest.mark.parametrize("layout", ["contig", "separate"])
def test_bands_of_16_bits_may_lie_one_after_another(layout: str) -> None:
    values = deep(RGB, 16) if layout == "contig" else np.moveaxis(deep(RGB, 16), -1, 0)
    content = tiff(np.ascontiguousarray(values), photometric="rgb", planarconfig=layout)
    np.testing.assert_array_equal(decode(content, "x"), RGB)


def test_a_colour_that_means_transparent() -> None:
    grey = deep(GREY[..., None], 16)
    key = struct.pack(">H", int(grey[0, 1, 0]))
    shown = decode(png16(grey, chunk(b"tRNS", key)), "x")[..., 0]
    np.testing.assert_array_equal(shown, np.where(GREY[0, 1] == GREY, WHITE, GREY))
    colours = deep(RGB, 16)
    rgb_key = struct.pack(">HHH", *colours[0, 1].tolist())
    shown = decode(png16(colours, chunk(b"tRNS", rgb_key)), "x")
    assert (shown[0, 1] == WHITE).all()
    np.testing.assert_array_equal(shown[1], RGB[1])


def test_colour_spaces_of_print_and_of_perception() -> None:
    cyan = np.zeros((2, 2, 4), np.uint8)
    cyan[..., 0] = WHITE
    assert (decode(tiff(cyan, photometric="separated"), "x") == (0, 255, 255)).all()
    wide = deep(cyan, 16) | deep(cyan, 8)
    assert (decode(tiff(wide, photometric="separated"), "x") == (0, 255, 255)).all()
    red = np.broadcast_to(np.array([136, 80, 67], np.uint8), (2, 2, 3))  # L 53, a 80, b 67
    shown = decode(tiff(np.ascontiguousarray(red), photometric="cielab"), "x").astype(int)
    assert np.abs(shown - (255, 0, 0)).max() < 16
    assert "16 bits of the colour space CIELAB" in unreadable(
        tiff(deep(np.ascontiguousarray(red), 16), photometric="icclab")
    ).replace("ICCLAB", "CIELAB")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 3), np.float32), "TIFF: its values are float32, of no known range"),
        (np.zeros((2, 3), np.float64), "TIFF: its values are float64, of no known range"),
        (np.full((2, 3), -7, np.int16), r"TIFF: its values (int16) go from -7 to -7"),
        (np.full((2, 3), -7, np.int8), r"TIFF: its values (int8) go from -7 to -7"),
        (np.full((2, 3), 70_000, np.uint32), r"(uint32) go from 70000 to 70000; 0 to 65535 would"),
        (np.zeros((2, 3, 5), np.uint8), "TIFF: 5 channels, which are no RGB; to train on them as"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}{value.shape}",
)
def test_values_that_are_no_picture_are_named(values: NDArray[Any], words: str) -> None:
    assert words in unreadable(tiff(values))


def test_whole_numbers_of_other_types_are_read_where_they_fit() -> None:
    for kind in (np.int16, np.int32, np.uint32):
        assert decode(tiff(deep(GREY, 12).astype(kind)), "x")[..., 0].tolist() == GREY.tolist()


class TestBands:
    """The channels as they are."""

    @pytest.mark.parametrize("kind", WRITERS)
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_of_16_bits(self, kind: str, channels: int) -> None:
        rng = np.random.default_rng(0)
        values = rng.integers(0, 3000, (5, 4, channels)).astype(np.uint16)
        found = decode_bands(WRITERS[kind](values), "x")
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, values)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("layout", ["contig", "separate"])
    def test_of_tiffs_and_arrays_with_many(self, dtype: type, layout: str) -> None:
        values: Pixels = np.random.default_rng(0).integers(0, 255, (6, 7, 5)).astype(dtype)
        first = np.ascontiguousarray(np.moveaxis(values, -1, 0))
        laid = values if layout == "contig" else first
        for content in (tiff(laid, photometric="minisblack", planarconfig=layout), npy(laid)):
            found = decode_bands(content, "x")
            assert (found.dtype, found.flags.c_contiguous) == (np.dtype(dtype), True)
            np.testing.assert_array_equal(found, values)

    def test_of_ordinary_pictures(self) -> None:
        grey = smooth().convert("L")
        for image, channels in ((grey, 1), (smooth(), 3)):
            for kind in ("JPEG", "PNG", "TIFF", "BMP"):
                assert decode_bands(stored(image, kind), "x").shape == (64, 96, channels)
        assert decode_bands(stored(smooth().convert("RGBA"), "PNG"), "x").shape == (64, 96, 4)
        assert decode_bands(stored(smooth().convert("P"), "PNG"), "x").shape == (64, 96, 3)
        near_infrared = np.dstack([RGB, GREY])
        content = tiff(near_infrared, photometric="rgb", extrasamples=["unspecified"])
        np.testing.assert_array_equal(decode_bands(content, "x"), near_infrared)
        bits = decode_bands(tiff(GREY > 100), "x")
        assert bits[..., 0].tolist() == ((GREY > 100) * 255).tolist()


def noted(damage: int, kind: bytes = b"tEXt") -> bytes:
    """A PNG with one more chunk after its header, whose checksum may be wrong."""
    content = stored(smooth(), "PNG")
    return content[:33] + chunk(kind, b"\0\1\0\1\0\1", damage) + content[33:]


def test_a_png_that_is_damaged_beside_its_pixels_is_read() -> None:
    with pytest.raises((OSError, SyntaxError)):
        Image.open(io.BytesIO(noted(damage=1))).verify()
    for kind in (b"tEXt", b"tIME", b"eXIf", b"zzZz"):
        shown = decode(noted(damage=1, kind=kind), "x")
        np.testing.assert_array_equal(shown, np.asarray(smooth()))


def frame_of(content: bytes, bits: int) -> bytes:
    at = content.index(b"\xff\xc0\x00\x11") + 4
    return content[:at] + bytes([bits]) + content[at + 1 :]


JPEG = stored(smooth(), "JPEG")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (frame_of(JPEG, 12), "JPEG (12 bits a sample): "),
        (without_marker(JPEG, 0xC3), "JPEG (lossless): "),
        (without_marker(JPEG, 0xC5), "JPEG (hierarchical): "),
        (without_marker(JPEG, 0xC9), "JPEG (arithmetic coding): "),
        (without_marker(JPEG, 0xCB), "JPEG (lossless, arithmetic coding): "),
        (JPEG[:300], "JPEG: Truncated File Read"),
        (noted(damage=1, kind=b"tRNS"), "PNG: the checksum of its chunk tRNS is wrong"),
        (noted(damage=1, kind=b"PLTE"), "PNG: the checksum of its chunk PLTE is wrong"),
        (stored(smooth(), "PNG")[:-20], "PNG: cut short or damaged at byte 33"),
        (stored(smooth(), "PNG")[:-5], "without an end mark"),
        (tiff(RGB, photometric="icclab"), "TIFF: 8 bits of the colour space ICCLAB are not read"),
        (b"II*\0" + bytes(40), "TIFF: no image is in it; it may be cut short"),
        (stored(smooth(), "GIF")[:200], "GIF: "),
        (stored(smooth(), "WEBP")[:100], "WEBP: "),
        (b"\x93NUMPY" + bytes(30), "NPY: "),
        (npy(GREY).replace(b"(6, 8), }            ", b"(6000000000000, 8), }"),
         "NPY: its header is damaged: Unable to allocate"),
        (npy(np.zeros((2, 2, 2, 2), np.uint8)), "NPY: an array of shape (2, 2, 2, 2)"),
        (npy(np.zeros((4, 4), np.float32)), "NPY: its values are float32, of no known range"),
        (stored(smooth(), "AVIF"), "none of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF, NPY: it "
         "looks like AVIF"),
        (stored(smooth(), "JPEG2000"), "it looks like JPEG 2000"),
        (b"<!DOCTYPE html><html>", "it looks like a web page"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_what_is_wrong(content: bytes, words: str) -> None:
    assert words in unreadable(content)
    with pytest.raises(UnreadableImage, match=r"^a/x: "):
        decode_bands(content, "a/x")
