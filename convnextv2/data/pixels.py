"""From the bytes of an image file to RGB pixels, or to the reason why there are none.

What a file is called does not count: formats are told by content. The camera's rotation is undone.
Transparent images are laid on white, as on a web page. 16-bit greys are scaled to 8 bits. Whatever
is cut short, or decodes with a warning, is unreadable: garbage is never passed on.
"""

import struct
import warnings
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from convnextv2.data import turbojpeg
from convnextv2.data.collection import RGBImage, UnreadableImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 100_000_000
"""Larger images (300 MB of pixels) are taken for decompression bombs."""
_JPEG_FORMATS = ("JPEG", "MPO")
_BASELINE_OR_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_LARGEST_SIDE = 65_535


def decode(content: bytes | RGBImage, name: str) -> RGBImage:
    """Decode an image file to (height, width, 3); pixels are returned as they are.

    Raises:
        UnreadableImage: When it cannot be, with `name` and the reason.
    """
    if not isinstance(content, bytes):
        return content
    if not content:
        raise UnreadableImage(f"{name}: the file is empty")
    try:
        # Pillow warns of large images, which are refused here, and of metadata nobody reads.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(content)
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: none of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # On damaged bytes Pillow raises nearly anything.
        raise UnreadableImage(f"{name}: {error or type(error).__name__}") from error


def passes_through(content: bytes, max_resolution: int | None) -> tuple[int, int] | None:
    """(height, width) of a JPEG that every reader of .beton files shows as it should be, or None.

    Such a file may be stored byte for byte: baseline or progressive, YCbCr or grey, not rotated
    by its EXIF data, no side longer than `max_resolution`, and decoded without a warning.
    """
    if _frame(content) not in _BASELINE_OR_PROGRESSIVE:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(content) as image:
                width, height = image.size
                if max(width, height) > min(max_resolution or _LARGEST_SIDE, _LARGEST_SIDE):
                    return None
                if _orientation(image) != 1:
                    return None
        if turbojpeg.colour_space(content) not in (turbojpeg.YCBCR, turbojpeg.GREY):
            return None
        turbojpeg.decompress(content, height, width, 3)
    except Exception:  # `decode` finds it again and says what it is.
        return None
    return height, width


def _open(content: bytes) -> Image.Image:
    image = Image.open(BytesIO(content), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels, more than {MAX_PIXELS:,}: a decompression bomb?"
        )
    return image


def _decode(content: bytes) -> RGBImage:
    with _open(content) as image:
        if image.format in _JPEG_FORMATS:
            pixels = _jpeg_pixels(content, image)
        else:
            if image.format == "PNG":
                # Decoding reads no further than the pixels, and checks no sums.
                _open(content).verify()
            image.load()
            pixels = np.asarray(_to_rgb(image))
        return np.ascontiguousarray(_turn(pixels, _orientation(image)))


def _jpeg_pixels(content: bytes, image: Image.Image) -> RGBImage:
    width, height = image.size
    if image.mode != "CMYK":
        return turbojpeg.decompress(content, height, width, 3)
    # CMYK JPEGs hold ink inverted: Adobe's convention, which all follow.
    inks = 255 - turbojpeg.decompress(content, height, width, 4)
    return np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("pixels are fractions of no known range")
    if image.mode.startswith("I"):
        # Pillow's convert would clip all but the darkest greys to white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"pixels from {values.min()} to {values.max()} are no 16-bit greys")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; damaged EXIF data tells none, and the pixels are as good."""
    try:
        told = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return told if told in range(1, 9) else 1


def _turn(pixels: RGBImage, orientation: int) -> RGBImage:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _frame(content: bytes) -> int | None:
    """Kind of a JPEG's frame: the marker that starts it (0xC0 baseline, 0xC2 progressive, ...)."""
    if content[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", content, position + 1)
        if marker == 0xFF:  # Fill.
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker
        else:
            position += 2 + length
    return None
