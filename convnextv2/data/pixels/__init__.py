"""From the bytes of an image file to pixels, or to the reason why there are none.

A file's format is recognised by its content, not its name. The camera's rotation is undone. A file
that is cut short, or decodes with a warning, is unreadable: garbage is never passed on.

`decode` makes RGB of 8 bits of everything that is a picture: transparent images are laid on white,
as on a web page, and values of more bits are scaled (`samples`). `decode_bands` returns the
channels as they are stored.
"""

import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from convnextv2.data.collection import Pixels, RGBImage, UnreadableImage
from convnextv2.data.pixels import jpeg, npy, png, tiff
from convnextv2.data.pixels.formats import FORMATS, format_of
from convnextv2.data.pixels.jpeg import passes_through
from convnextv2.data.pixels.opening import open_image, orientation_of, turned
from convnextv2.data.pixels.samples import Samples, to_rgb

__all__ = ["FORMATS", "decode", "decode_bands", "passes_through"]

Array = TypeVar("Array", bound=Pixels)


def decode(content: bytes | Pixels, name: str) -> RGBImage:
    """Decode an image file to RGB of 8 bits, (height, width, 3); such pixels stay as they are.

    Raises:
        UnreadableImage: When it cannot be, with `name`, the format and the reason.
    """
    if isinstance(content, bytes):
        return _explained(content, name, _rgb)
    if content.dtype == np.uint8 and content.shape[2] == 3:
        return content  # type: ignore[return-value]
    try:
        return to_rgb(Samples(content))
    except ValueError as error:
        raise UnreadableImage(f"{name}: {error}") from error


def decode_bands(content: bytes | Pixels, name: str) -> Pixels:
    """Decode to the channels that the file has, (height, width, channels), uint8 or uint16.

    Grey images have one, transparency counts as one. Palettes and other colour spaces become RGB.

    Raises:
        UnreadableImage: When it cannot be, with `name`, the format and the reason.
    """
    return _explained(content, name, _bands) if isinstance(content, bytes) else content


def _explained(content: bytes, name: str, decoder: Callable[[bytes, str], Array]) -> Array:
    if not content:
        raise UnreadableImage(f"{name}: the file is empty")
    try:
        kind = format_of(content)
    except ValueError as error:
        raise UnreadableImage(f"{name}: {error}") from error
    try:
        # Pillow warns of large images, which are refused here, and of metadata nobody reads.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decoder(content, kind)
    except Exception as error:  # On damaged bytes decoders raise nearly anything.
        rare = jpeg.kind_of(content) if kind == "JPEG" else None
        what = f"{kind} ({rare})" if rare else kind
        raise UnreadableImage(f"{name}: {what}: {error or type(error).__name__}") from error


def _rgb(content: bytes, kind: str) -> RGBImage:
    content = png.without_damaged_notes(content) if kind == "PNG" else content
    deep = _deep(content, kind)
    if deep is not None:
        return to_rgb(deep)
    with open_image(content, kind) as image:
        pixels = jpeg.pixels(content, image) if kind == "JPEG" else _converted(image)
        return np.ascontiguousarray(turned(pixels, orientation_of(image)))


def _bands(content: bytes, kind: str) -> Pixels:
    content = png.without_damaged_notes(content) if kind == "PNG" else content
    deep = _deep(content, kind)
    if deep is None and kind == "TIFF" and tiff.has_bands(content):
        deep = tiff.samples(content)
    if deep is not None:
        return deep.values
    with open_image(content, kind) as image:
        if kind == "JPEG":
            pixels = jpeg.pixels(content, image)[..., : 1 if image.mode == "L" else 3]
        else:
            image.load()
            kept = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}.get(image.mode, "RGB")
            pixels = np.atleast_3d(np.asarray(image.convert(kept)))
        return np.ascontiguousarray(turned(pixels, orientation_of(image)))


def _deep(content: bytes, kind: str) -> Samples | None:
    """The values of a file that Pillow cannot read without loss; None for other files."""
    if kind == "NPY":
        return npy.samples(content)
    if kind == "PNG" and png.is_deep(content):
        return png.samples(content)
    if kind == "TIFF" and tiff.is_deep(content):
        return tiff.samples(content)
    return None


def _converted(image: Image.Image) -> RGBImage:
    image.load()
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))
