"""Pixels from image files: (H, W, 3) uint8 with the colours a person sees, or a reason why not."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from convnextv2.data.collection import UnreadableImage
from convnextv2.data.pixels import decode, opening, passes_through

ORIENTATION, DESCRIPTION = 0x0112, 0x010E
Bytes = npt.NDArray[np.uint8]


def picture(height: int = 6, width: int = 8) -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int = 64, width: int = 96) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width] / 9
    waves = np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], axis=-1)
    return Image.fromarray(np.round(127.5 + 127.5 * waves).astype(np.uint8))


def stored(image: Image.Image | Bytes, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
    whole.save(file, format=kind, **options)
    return file.getvalue()


def unreadable(content: bytes) -> str:
    """The reason."""
    with pytest.raises(UnreadableImage, match=r"^a/x\.jpg: .") as caught:
        decode(content, "a/x.jpg")
    return str(caught.value).removeprefix("a/x.jpg: ")


EVERY_KIND: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"subsampling": 0, "quality": 95}),
    ("PNG", {}),
    ("PNG", {"compress_level": 0}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
]


@pytest.mark.parametrize(("kind", "options"), EVERY_KIND, ids=str)
def test_formats_are_told_by_content_whatever_the_name(kind: str, options: dict[str, Any]) -> None:
    content = stored(smooth(), kind, **options)
    rgb = decode(content, "a/x.JPEG")
    assert (rgb.shape, rgb.dtype) == ((64, 96, 3), np.uint8)
    assert rgb.flags.c_contiguous
    np.testing.assert_array_equal(rgb, np.asarray(Image.open(BytesIO(content)).convert("RGB")))


def test_pixels_stay_as_they_are() -> None:
    image = picture()
    assert decode(image, "x") is image


def test_greys_become_rgb() -> None:
    grey = Image.fromarray(picture()[..., 0])
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        np.testing.assert_array_equal(
            decode(stored(grey, kind), "x"), np.repeat(picture()[..., :1], 3, axis=2)
        )
    jpeg = decode(stored(smooth().convert("L"), "JPEG"), "x")
    assert (jpeg == jpeg[..., :1]).all()
    assert decode(stored(Image.new("1", (3, 2), 1), "PNG"), "x").tolist() == [[[255] * 3] * 3] * 2


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert (decode(stored(red, "TIFF"), "x") == (255, 0, 0)).all()
    # Adobe's convention: the JPEG holds the inks inverted.
    rgb = decode(stored(red, "JPEG", quality=95), "x").astype(int)
    assert np.abs(rgb - (255, 0, 0)).max() < 8


def test_ycck_becomes_rgb() -> None:
    """Adobe's other CMYK: the marker's transform is 2, the first three channels are YCbCr."""
    # Green is all of cyan and yellow, none of magenta: as a colour of its own, (255, 0, 255).
    y, cb, cr = np.asarray(Image.new("RGB", (1, 1), (255, 0, 255)).convert("YCbCr"))[0, 0].tolist()
    inks = Image.new("CMYK", (16, 16), (255 - y, 255 - cb, 255 - cr, 0))
    content = stored(inks, "JPEG", quality=95)
    at = content.index(b"Adobe") + 11
    assert content[at] == 0
    rgb = decode(content[:at] + b"\2" + content[at + 1 :], "x").astype(int)
    assert np.abs(rgb - (0, 255, 0)).max() < 12


def test_palettes_become_their_colours_and_transparent_ones_lie_on_white() -> None:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([9, 9, 9, 10, 200, 30])
    for kind in ("PNG", "GIF", "BMP"):
        assert (decode(stored(image, kind), "x") == (10, 200, 30)).all()
    assert (decode(stored(image, "PNG", transparency=1), "x") == 255).all()
    assert (decode(stored(image, "PNG", transparency=0), "x") == (10, 200, 30)).all()


def test_transparency_is_laid_on_white() -> None:
    for alpha, expected in ((0, (255, 255, 255)), (255, (1, 2, 3)), (51, (204, 204, 205))):
        image = Image.new("RGBA", (4, 3), (1, 2, 3, alpha))
        assert (decode(stored(image, "PNG"), "x") == expected).all()
    grey = Image.new("LA", (4, 3), (0, 51))
    assert (decode(stored(grey, "PNG"), "x") == 204).all()
    colour = stored(Image.new("RGB", (4, 3), (5, 6, 7)), "PNG", transparency=(5, 6, 7))
    assert (decode(colour, "x") == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_greys_keep_their_range(kind: str) -> None:
    greys = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    rgb = decode(stored(Image.fromarray(greys), kind), "x")
    assert (rgb.shape, rgb.dtype) == ((16, 16, 3), np.uint8)
    np.testing.assert_array_equal(rgb[..., 1].ravel(), np.arange(256))


def test_pixels_of_no_known_range_are_refused() -> None:
    fractions = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    assert "no known range" in unreadable(stored(fractions, "TIFF"))
    deep = Image.fromarray(np.array([[0, 70_000]], np.int32))
    words = "TIFF: its values (int32) go from 0 to 70000; 0 to 65535 would be read"
    assert unreadable(stored(deep, "TIFF")) == words


UPRIGHT: dict[int, Callable[[Bytes], Bytes]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_the_cameras_rotation_is_undone(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = smooth()
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    turned = decode(stored(image, kind, exif=exif, **options), "x")
    plain = decode(stored(image, kind, **options), "x")
    np.testing.assert_array_equal(turned, UPRIGHT[orientation](plain))
    assert turned.flags.c_contiguous


def jpeg_with_exif(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION], exif[DESCRIPTION] = orientation, "a photograph"
    return stored(smooth(), "JPEG", exif=exif)


def test_damaged_exif_data_does_not_cost_the_image() -> None:
    whole = jpeg_with_exif()
    # The description becomes a width that is a text: the orientation is still there.
    half = whole.replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02")
    assert half != whole
    assert decode(half, "x").shape == (96, 64, 3)
    # Nothing can be told any more.
    at = whole.index(b"Exif\0\0") + 6
    for damage in (b"\0\0\0\0\0\0\0\0", whole[at : at + 4] + b"\xff\xff\xff\xff"):
        assert decode(whole[:at] + damage + whole[at + 8 :], "x").shape == (64, 96, 3)
    assert decode(jpeg_with_exif(orientation=9), "x").shape == (64, 96, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (1, 2000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_sides_may_have_one_pixel(size: tuple[int, int], kind: str) -> None:
    assert decode(stored(Image.new("RGB", size, "red"), kind), "x").shape == (*size[::-1], 3)


@pytest.mark.parametrize(("kind", "options"), EVERY_KIND, ids=str)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_a_file_that_is_cut_short_is_unreadable(
    kind: str, options: dict[str, Any], share: float
) -> None:
    content = stored(smooth(), kind, **options)
    unreadable(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF"]
)
def test_what_is_no_image_is_named_without_an_address(content: bytes) -> None:
    reason = unreadable(content)
    assert "0x" not in reason
    # The same every time: the list of skipped images is part of a manifest.
    assert unreadable(bytes(content)) == reason


def test_an_empty_file_is_said_to_be_so() -> None:
    assert unreadable(b"") == "the file is empty"


def test_a_png_whose_pixels_decode_but_are_not_those_written_is_unreadable() -> None:
    content = stored(smooth(), "PNG")
    unnoticed = 0
    for place in range(60, len(content) - 20, len(content) // 200):
        damaged = content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :]
        try:
            unnoticed += (np.asarray(Image.open(BytesIO(damaged))) != np.asarray(smooth())).any()
        except (OSError, SyntaxError):
            continue
        unreadable(damaged)
    assert unnoticed > 5


def entropy_damaged(content: bytes) -> list[bytes]:
    """A JPEG with bytes changed in its scan; those that Pillow decodes without a word."""
    silent = []
    for place in range(700, len(content) - 20, 97):
        damaged = content[:place] + b"\x13\x37\x00\xff\x00" + content[place + 5 :]
        image = Image.open(BytesIO(damaged))
        try:
            image.load()
        except OSError:
            continue
        silent.append(damaged)
    return silent


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_of_which_libjpeg_only_warns_is_an_error(progressive: bool) -> None:
    silent = entropy_damaged(stored(picture(96, 96), "JPEG", progressive=progressive))
    assert len(silent) > 20
    found = 0
    for content in silent:
        try:
            decode(content, "x")
        except UnreadableImage:
            assert passes_through(content, None) is None
            found += 1
    # What changes a coefficient for another valid one nobody can tell.
    assert found > 0.4 * len(silent)


def test_a_jpeg_without_its_end_is_no_grey_half_image() -> None:
    content = stored(smooth(), "JPEG")
    half = content[: len(content) * 2 // 3]
    assert "remature end" in unreadable(half)
    assert "remature end" in unreadable(half + b"\xff\xd9")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    body = zlib.compress(bytes(10**6))
    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about)
    return head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 12_000, 65_535, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    # Above twice its own limit Pillow raises, above it only warns, below it says nothing.
    assert "bomb" in unreadable(png_header(side, side))


def test_the_largest_image_is_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_PIXELS", 6 * 8)
    assert decode(stored(picture(), "PNG"), "x").shape == (6, 8, 3)
    reason = unreadable(stored(picture(7, 8), "PNG"))
    assert reason == "PNG: 8 x 7 pixels, more than 48: a decompression bomb?"
    assert passes_through(stored(picture(7, 8), "JPEG"), None) is None


# Which JPEGs may be stored as they are


@pytest.mark.parametrize(
    "content",
    [
        stored(smooth(), "JPEG"),
        stored(smooth(), "JPEG", progressive=True),
        stored(smooth(), "JPEG", subsampling=0),
        stored(smooth(), "JPEG", subsampling=1),
        stored(smooth().convert("L"), "JPEG"),
        jpeg_with_exif(orientation=1),
        stored(smooth(), "JPEG", icc_profile=b"colours" * 30_000),
    ],
    ids=["baseline", "progressive", "444", "422", "grey", "exif", "profile"],
)
def test_ordinary_jpegs_pass_and_ffcv_reads_them(content: bytes) -> None:
    from ffcv.libffcv import imdecode

    assert passes_through(content, None) == (64, 96)
    assert passes_through(content, 96) == (64, 96)
    assert passes_through(content, 95) is None
    shown = np.zeros((64, 96, 3), np.uint8)
    assert imdecode(np.frombuffer(content, np.uint8), shown, 64, 96, 64, 96) == 0
    assert np.abs(shown.astype(int) - decode(content, "x")).max() <= 6


def without_marker(content: bytes, frame: int) -> bytes:
    """Another kind of frame."""
    at = content.index(b"\xff\xc0\x00\x11")
    return content[: at + 1] + bytes([frame]) + content[at + 2 :]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xff\xff",
        stored(picture(), "PNG"),
        stored(picture(), "WEBP"),
        stored(Image.new("CMYK", (8, 8)), "JPEG"),
        stored(smooth(), "JPEG", keep_rgb=True),
        jpeg_with_exif(orientation=6),
        stored(smooth(), "JPEG")[:-30],
        without_marker(stored(smooth(), "JPEG"), 0xC3),
        without_marker(stored(smooth(), "JPEG"), 0xC9),
    ],
    ids=["empty", "start", "fill", "png", "webp", "cmyk", "rgb", "turned", "cut", "lossless",
         "arithmetic"],
)  # fmt: skip
def test_others_do_not_pass(content: bytes) -> None:
    assert passes_through(content, None) is None
