"""The collapse analysis of one checkpoint, or of two side by side: numbers, plots and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from convnextv2.analysis.collapse import CollapseMeter, activation_maps, block_named
from convnextv2.analysis.images import Views, open_images, require_rgb
from convnextv2.analysis.models import best_device, normalization_of, read_encoder
from convnextv2.durable import atomically, write_json
from convnextv2.encoder import ConvNeXtV2
from pipelines.report.charts import picture, themed_svg
from pipelines.report.collapse_charts import (
    PAGE_SIZE,
    Checkpoint,
    activations_png,
    coloured,
    curve_png,
    distance_curve,
)
from pipelines.report.html import render
from pipelines.training.weights.reading import inspect

BATCH = 8
PHOTOS = 3
"""Images whose activation maps are drawn."""


class BlockNumbers(TypedDict):
    """The fields of `BlockCollapse`."""

    block: str
    position: float
    channels: int
    distance: float | None
    dead: float


class CheckpointNumbers(TypedDict):
    """The numbers of one weight file, with the mean distance over its blocks."""

    weights: str
    mean_distance: float | None
    blocks: list[BlockNumbers]


class CollapseNumbers(TypedDict):
    """What collapse.json holds; `image_size` is height and width in pixels."""

    images: int
    skipped: list[str]
    image_size: list[int]
    checkpoints: list[CheckpointNumbers]


def analyse_collapse(
    files: Sequence[Path],
    images: Path,
    output: Path,
    *,
    image_size: tuple[int, int],
    max_images: int,
    block: str | None,
) -> CollapseNumbers:
    """Measure every weight file on the same images; write and return the numbers.

    Writes collapse.json, collapse.png, activations.png and collapse.html to `output`. `block` is
    the one whose maps are drawn; by default a deep one of each model.

    Raises:
        ValueError: When a file, the images, their size or `block` cannot be used.
    """
    found = [inspect(path) for path in files]
    models = [read_encoder(each).to(best_device()) for each in found]
    drawn = [_drawable(path, model, block) for path, model in zip(files, models, strict=True)]
    views = Views(open_images(images, max_images), image_size, BATCH)
    meters = [
        CollapseMeter(model, normalization_of(each))
        for model, each in zip(models, found, strict=True)
    ]
    photos = _show(views, meters)
    checkpoints = [
        Checkpoint(
            label=label,
            blocks=meter.result(),
            drawn=name,
            maps=activation_maps(meter.model, photos, name, normalization=meter.normalization),
        )
        for label, meter, name in zip(labels(files), meters, drawn, strict=True)
    ]
    result: CollapseNumbers = {
        "images": len(views.shown),
        "skipped": views.skipped,
        "image_size": list(image_size),
        "checkpoints": [
            _numbers(path, checkpoint) for path, checkpoint in zip(files, checkpoints, strict=True)
        ],
    }
    facts = {"images": f"{len(views.shown):,}", "size": f"{image_size[0]} × {image_size[1]}"}
    page = collapse_page(checkpoints, photos.numpy(), facts=facts, skipped=views.skipped)
    output.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("collapse.png", curve_png(checkpoints)),
        ("activations.png", activations_png(photos.numpy(), checkpoints)),
        ("collapse.html", page.encode()),
    ):
        with atomically(output / name) as partial:
            partial.write_bytes(content)
    write_json(output / "collapse.json", result)
    return result


def _numbers(path: Path, checkpoint: Checkpoint) -> CheckpointNumbers:
    return {
        "weights": str(path),
        "mean_distance": checkpoint.mean_distance,
        "blocks": [
            {
                "block": measured.block,
                "position": measured.position,
                "channels": measured.channels,
                "distance": measured.distance,
                "dead": measured.dead,
            }
            for measured in checkpoint.blocks
        ],
    }


def _show(views: Views, meters: Sequence[CollapseMeter]) -> Tensor:
    """Feed all images to every meter; returns the first ones (N, H, W, 3) to draw the maps of."""
    photos = None
    console = Console(stderr=True)
    batches = track(
        views,
        "measuring",
        total=-(-len(views.source) // BATCH),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    for batch in batches:
        photos = batch[:PHOTOS] if photos is None else photos
        for meter in meters:
            meter.show(batch)
    assert photos is not None, "views without images raise"
    return photos


def labels(files: Sequence[Path]) -> list[str]:
    """Names of the files, or their paths where names are equal."""
    names = [path.name for path in files]
    return names if len(set(names)) == len(names) else [str(path) for path in files]


def collapse_page(
    checkpoints: Sequence[Checkpoint],
    photos: NDArray[np.uint8],
    *,
    facts: Mapping[str, object],
    skipped: Sequence[str],
) -> str:
    """The page with the curve, maps (beside the `photos` (N, H, W, 3) they are of) and numbers."""
    by_name = [{block.block: block for block in checkpoint.blocks} for checkpoint in checkpoints]
    names = sorted({name for blocks in by_name for name in blocks}, key=_place)
    title = "Cosine distance of the channels of each block"
    maps = [
        [
            picture(photo, f"image {number}"),
            *(
                picture(coloured(checkpoint.maps[number - 1]), f"{checkpoint.label}, {number}")
                for checkpoint in checkpoints
            ),
        ]
        for number, photo in enumerate(photos, start=1)
    ]
    return render(
        "collapse.html.j2",
        title="Mean distance "
        + " and ".join(f"{_words(c.mean_distance)} ({c.label})" for c in checkpoints),
        overline="Feature collapse",
        facts=facts,
        checkpoints=checkpoints,
        curve=themed_svg(distance_curve(checkpoints, PAGE_SIZE), title),
        channels=checkpoints[0].maps.shape[1],
        maps=maps,
        rows=[(name, [blocks.get(name) for blocks in by_name]) for name in names],
        skipped=skipped,
    )


def _drawable(path: Path, model: ConvNeXtV2, block: str | None) -> str:
    try:
        require_rgb(model.in_channels)
        return block_named(model, block)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _place(block: str) -> list[int]:
    """Of "stages.2.10": [2, 10]."""
    return [int(number) for number in block.split(".")[1:]]


def _words(distance: float | None) -> str:
    return "undefined" if distance is None else f"{distance:.3f}"
