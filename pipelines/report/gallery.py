"""The reconstruction gallery: one HTML page and one PNG of the same pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convnextv2.analysis.images import Views, open_images, require_rgb
from convnextv2.analysis.models import best_device, normalization_of, read_fcmae
from convnextv2.analysis.reconstruct import Reconstruction, reconstruct_all
from convnextv2.durable import atomically
from pipelines.report.charts import LIGHT, picture
from pipelines.report.html import render
from pipelines.training.weights.reading import inspect

KINDS = ("original", "masked", "predicted")
BATCH = 8
SETS_PER_ROW = 2
SMALLEST_TILE = 128
GAP, MARGIN, HEADING = 6, 24, 28


class Gallery(TypedDict):
    """What `reconstruct --json` prints: sizes in pixels, the mean loss, and the files written."""

    images: int
    skipped: list[str]
    loss: float
    image_size: list[int]
    patch_size: int
    files: list[str]


def make_gallery(
    weights: Path,
    images: Path,
    output: Path,
    *,
    mask_ratio: float,
    seed: int,
    max_images: int,
    image_size: tuple[int, int] | None,
    patch_size: int | None,
    norm_pix_loss: bool,
) -> Gallery:
    """Write gallery.html and gallery.png to `output`; return the loss and what was done.

    Arguments are those of `read_fcmae` and `open_images`; the mask of an image depends on `seed`
    and its place in the gallery only.

    Raises:
        ValueError: When the weights have no decoder, or the images or sizes cannot be used.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask ratio {mask_ratio} is not between 0 and 1")
    found = inspect(weights)
    model = read_fcmae(
        found, image_size=image_size, patch_size=patch_size, norm_pix_loss=norm_pix_loss
    ).to(best_device())
    require_rgb(model.encoder.in_channels)
    views = Views(open_images(images, max_images), model.image_size, BATCH)
    made = reconstruct_all(
        model, views, mask_ratio=mask_ratio, seed=seed, normalization=normalization_of(found)
    )

    height, width = model.image_size
    facts = {
        "images": len(views.shown),
        "size": f"{height} × {width}",
        "patch": model.patch_size,
        "hidden": f"{mask_ratio:.0%}",
        "seed": seed,
        "loss": f"{made.loss:.3f}",
    }
    page = gallery_page(
        made,
        views.shown,
        title=weights.name,
        facts=facts,
        norm_pix_loss=norm_pix_loss,
        skipped=views.skipped,
    )
    return {
        "images": len(views.shown),
        "skipped": views.skipped,
        "loss": made.loss,
        "image_size": [height, width],
        "patch_size": model.patch_size,
        "files": _write(output, page, gallery_sheet(made)),
    }


def _write(output: Path, page: str, sheet: Image.Image) -> list[str]:
    """Write both files, and return where they are."""
    output.mkdir(parents=True, exist_ok=True)
    files = output / "gallery.html", output / "gallery.png"
    with atomically(files[0]) as partial:
        partial.write_text(page)
    with atomically(files[1]) as partial:
        sheet.save(partial, format="PNG")
    return [str(file) for file in files]


def gallery_page(
    reconstruction: Reconstruction,
    names: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, object],
    norm_pix_loss: bool,
    skipped: Sequence[str],
) -> str:
    """The page; `names` are those of the images, in their order."""
    columns = [getattr(reconstruction, kind) for kind in KINDS]
    samples = [
        (
            name,
            [picture(image, f"{kind}, {name}") for kind, image in zip(KINDS, images, strict=True)],
        )
        for name, *images in zip(names, *columns, strict=True)
    ]
    return render(
        "gallery.html.j2",
        title=title,
        overline="What the autoencoder fills in",
        facts=facts,
        samples=samples,
        norm_pix_loss=norm_pix_loss,
        skipped=skipped,
    )


def gallery_sheet(reconstruction: Reconstruction) -> Image.Image:
    """All pictures on one sheet, two images in a row; small ones are enlarged pixel by pixel."""
    count, height, width, _ = reconstruction.original.shape
    enlarged = -(-SMALLEST_TILE // max(height, width))
    height, width = height * enlarged, width * enlarged
    sets = min(count, SETS_PER_ROW)
    set_width = len(KINDS) * (width + GAP) - GAP
    sheet = Image.new(
        "RGB",
        (
            2 * MARGIN + sets * (set_width + MARGIN) - MARGIN,
            2 * MARGIN + HEADING + -(-count // sets) * (height + GAP) - GAP,
        ),
        LIGHT["paper"],
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number in range(count):
        row, place = divmod(number, sets)
        top = MARGIN + HEADING + row * (height + GAP)
        for column, kind in enumerate(KINDS):
            left = MARGIN + place * (set_width + MARGIN) + column * (width + GAP)
            pixels = getattr(reconstruction, kind)[number]
            tile = np.repeat(np.repeat(pixels, enlarged, 0), enlarged, 1)
            sheet.paste(Image.fromarray(tile), (left, top))
            if row == 0:
                draw.text((left, MARGIN), kind, LIGHT["soft"], font)
    return sheet
