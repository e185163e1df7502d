"""Files with several images, of which the first is read: TIFF pages, frames of animations."""

from io import BytesIO

from convnextv2.data.pixels.formats import format_of
from convnextv2.data.pixels.opening import open_image

_ANIMATED = ("GIF", "PNG", "WEBP")


def has_further_pages(content: bytes) -> bool:
    """Whether an image file holds more than its first image.

    Reduced copies of it (overviews) and masks, which TIFF may have, do not count.
    """
    try:
        kind = format_of(content)
        if kind == "TIFF":
            return _has_further_pages(content)
        if kind not in _ANIMATED:
            return False
        with open_image(content, kind) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # Damage after the first image does not matter: it is not read.
        return False


def _has_further_pages(content: bytes) -> bool:
    # Imported here because it takes 0.1 s, which only collections with such files need.
    import tifffile

    with tifffile.TiffFile(BytesIO(content)) as file:
        pages = iter(file.pages)
        next(pages)
        return any(
            isinstance(page, tifffile.TiffPage) and not (page.is_reduced or page.is_mask)
            for page in pages
        )
