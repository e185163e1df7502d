"""A batch as the network sees it, as one picture."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from convnextv2.data.pixels.visible import visible
from convnextv2.tasks import IMAGENET, Normalization
from convnextv2.tasks.batch import Batch

MARGIN, CAPTION = 4, 14


def contact_sheet(
    batch: Batch, classes: Sequence[str], normalization: Normalization = IMAGENET
) -> Image.Image:
    """Images of a batch in a square, with their classes (and what is mixed in) under them."""
    count, height, width = batch.images.shape[:3]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    across, down = width + MARGIN, height + CAPTION + MARGIN
    sheet = Image.new("RGB", (columns * across + MARGIN, rows * down + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number in range(count):
        left = MARGIN + number % columns * across
        top = MARGIN + number // columns * down
        pixels = visible(batch.images[number].numpy(), normalization)
        sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)), (left, top))
        caption = _caption(batch, number, classes)
        while draw.textlength(caption) > width and len(caption) > 1:
            caption = caption[:-2] + "…"
        draw.text((left, top + height), caption, fill="black")
    return sheet


def _caption(batch: Batch, number: int, classes: Sequence[str]) -> str:
    own = _name(batch.labels[number], classes)
    if batch.coefficients is None or batch.partner_labels is None:
        return own
    fraction = float(batch.coefficients[number])
    return f"{fraction:.0%} {own}, {1 - fraction:.0%} " + _name(
        batch.partner_labels[number], classes
    )


def _name(label: Tensor, classes: Sequence[str]) -> str:
    """The class of a label, or those of a label (classes,) of 0 and 1."""
    labels = [int(label)] if label.ndim == 0 else label.nonzero()[:, 0].tolist()
    return "+".join(classes[each] for each in labels if 0 <= each < len(classes)) or "-"
