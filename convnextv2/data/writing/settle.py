"""Checks a collection's channels and bits on some of its images, and decides those left open.

Images that do not fit the settings or each other are reported before anything is written. A misfit
that is found only while writing is listed as skipped, like an image that cannot be read.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from convnextv2.data.collection import (
    RGB,
    DataError,
    Members,
    PixelFormat,
    Source,
    UnreadableImage,
)
from convnextv2.data.pixels import decode_bands
from convnextv2.data.pixels.pages import has_further_pages
from convnextv2.data.writing.encode import WriteSettings
from convnextv2.data.writing.estimate import some_of

MADE_RGB = (1, 2, 3, 4)
"""Channels of images that are made RGB: grey, RGB, and these with transparency."""
_JPEG = b"\xff\xd8"


def settle(
    source: Source, sequence: Members, settings: WriteSettings, note: Callable[[str], None]
) -> WriteSettings:
    """Look at some images of `sequence` (rows of PLANNED); a `bits` of None becomes theirs.

    `note` is told when levels will be lost, and when pages or frames are not read.

    Raises:
        DataError: When more of them than may be left out do not go with `settings`, or with each
            other; names one of each kind, and the setting that would work.
    """
    found, names, paged = _look(source, sequence, settings)
    if not found:
        return settings
    if paged:
        note(
            f"{len(paged)} of {sum(found.values())} images looked at, such as {paged[0]}, have "
            "further pages or frames, which are not read: of each file the first is the image"
        )
    if settings.pixel_format == RGB:
        misfits = {form: n for form, n in found.items() if form.channels not in MADE_RGB}
        _refuse(misfits, found, names, settings)
        deep = [form for form in found if form.bits > RGB.bits and form not in misfits]
        if deep:
            note(
                f"{sum(found[form] for form in deep)} of {sum(found.values())} images looked at, "
                f"such as {names[deep[0]]}, have more than 8 bits a value: they are stored with 8, "
                "and levels are lost; data.write.bits=16 (data write: --bits 16) keeps them"
            )
        return settings
    fitting = [form for form in found if form.channels == settings.channels]
    usual = max(fitting, key=found.__getitem__, default=RGB)
    settled = replace(settings, bits=settings.bits or usual.bits)
    misfits = {form: n for form, n in found.items() if form != settled.pixel_format}
    _refuse(misfits, found, names, settings)
    return settled


def _look(
    source: Source, sequence: Members, settings: WriteSettings
) -> tuple[Counter[PixelFormat], dict[PixelFormat, str], list[str]]:
    """How many of the images have which format, one of each, and those of several pages."""
    found: Counter[PixelFormat] = Counter()
    names: dict[PixelFormat, str] = {}
    paged: list[str] = []
    for stored, _ in some_of(source, sequence):
        content = stored.content
        if settings.pixel_format == RGB and isinstance(content, bytes) and content[:2] == _JPEG:
            form = RGB  # Any JPEG is made RGB of 8 bits, and need not be decoded for it.
        else:
            try:
                values = decode_bands(content, stored.name)
            except UnreadableImage:
                continue
            form = PixelFormat(values.shape[2], 8 * values.itemsize)
            if isinstance(content, bytes) and has_further_pages(content):
                paged.append(stored.name)
        found[form] += 1
        names.setdefault(form, stored.name)
    return found, names, paged


def _refuse(
    misfits: dict[PixelFormat, int],
    found: Counter[PixelFormat],
    names: dict[PixelFormat, str],
    settings: WriteSettings,
) -> None:
    """Raise DataError when there are more misfits than images that may be left out.

    `settings` are the user's, so that the message does not name bits that were not asked for.
    """
    if sum(misfits.values()) <= settings.max_unreadable:
        return
    kinds = "; ".join(f"{form} ({names[form]})" for form in found)
    alone = f"{settings.channels} channel{'s' * (settings.channels != 1)}"
    asked = f"the settings ask for {settings.pixel_format if settings.bits else alone}"
    if len(found) > 1:
        raise DataError(
            f"images of different kinds: {kinds}, where {asked}; write each kind by itself, or "
            "make them alike"
        )
    (form,) = found
    # Of other than RGB the bits are the files' own, unless they are set.
    wrong = form.bits != settings.pixel_format.bits and (settings.bits or form.channels == 3)
    setting, option = (
        (f", data.write.bits={form.bits}", f" --bits {form.bits}") if wrong else ("", "")
    )
    raise DataError(
        f"the images have {kinds}, and {asked}; model.in_channels={form.channels}{setting} would "
        f"work (data write: --channels {form.channels}{option})"
    )
