"""Files of several images, of which the first is read: pages of TIFF, frames of animations."""

from io import BytesIO

from convnextv2.data.pixels.formats import format_of
from convnextv2.data.pixels.opening import open_image

_ANIMATED = ("GIF", "PNG", "WEBP")


def has_further_pages(content: bytes) -> bool:
    """Whether an image file holds more than its first image.

    Smaller copies of it (overviews) and masks, as TIFF may have them, do not count.
    """
    try:
        kind = format_of(content)
        if kind == "TIFF":
            return _has_further_pages(content)
        if kind not in _ANIMATED:
            return False
        with open_image(content, kind) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # What comes after the first image may be damaged, and nobody reads it.
        return False


def _has_further_pages(content: bytes) -> bool:
    # 0.1 s that only collections with such files need.
    import tifffile

    with tifffile.TiffFile(BytesIO(content)) as file:
        pages = iter(file.pages)
        next(pages)
        return any(
            isinstance(page, tifffile.TiffPage) and not (page.is_reduced or page.is_mask)
            for page in pages
        )
