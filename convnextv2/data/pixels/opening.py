"""Opening an image file with Pillow, and turning it upright."""

from io import BytesIO
from typing import Any, TypeVar, cast

from PIL import ExifTags, Image, UnidentifiedImageError

from convnextv2.data.collection import Pixels

MAX_PIXELS = 100_000_000
"""Larger images (300 MB of pixels) are taken for decompression bombs."""

Array = TypeVar("Array", bound=Pixels)


def open_image(content: bytes, kind: str) -> Image.Image:
    """Open a file of the format `kind`; its pixels are not decoded yet.

    Raises:
        ValueError: When it is damaged, of a kind that Pillow does not know, or too large.
    """
    try:
        image = Image.open(BytesIO(content), formats=[kind])
    except UnidentifiedImageError as error:
        raise ValueError(_reason(content, kind)) from error
    check_size(*image.size)
    return image


def check_size(width: int, height: int) -> None:
    """Raise ValueError for more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels, more than {MAX_PIXELS:,}: a decompression bomb?"
        )


def _reason(content: bytes, kind: str) -> str:
    """What Pillow's reader of a format says, which `Image.open` keeps to itself."""
    try:
        Image.OPEN[kind][0](BytesIO(content), "")
    except Exception as error:  # On damaged bytes Pillow raises nearly anything.
        return str(error) or type(error).__name__
    return "damaged, or of a kind that is not read"


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where EXIF data is damaged, because the pixels may be fine."""
    try:
        told = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return told if told in range(1, 9) else 1


def turned(pixels: Array, orientation: int) -> Array:
    """Undo the camera's rotation of (H, W, C)."""
    upright: Any = pixels.transpose(1, 0, 2) if orientation >= 5 else pixels
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    return cast(Array, upright)
