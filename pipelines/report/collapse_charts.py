"""Pictures of the collapse analysis: distances as a curve, activation maps as tiles."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convnextv2.analysis.collapse import BlockCollapse
from pipelines.report.charts import LIGHT, STYLE

COLOURS = (LIGHT["pretrained"], LIGHT["warn"])
DPI = 160
SHEET_SIZE, PAGE_SIZE = (7.4, 3.4), (5.0, 2.9)
"""Sizes of the curve in inches: as a picture, and on the page, where its labels must be legible
on a phone."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was measured of one weight file.

    Args:
        label: Its name in pictures.
        blocks: From the first to the last.
        drawn: The block whose maps are shown.
        maps: (images, channels, h, w), see `convnextv2.analysis.collapse.activation_maps`.
    """

    label: str
    blocks: Sequence[BlockCollapse]
    drawn: str
    maps: NDArray[np.float32]

    @property
    def mean_distance(self) -> float | None:
        """Over the blocks that have one."""
        known = [block.distance for block in self.blocks if block.distance is not None]
        return sum(known) / len(known) if known else None


def distance_curve(checkpoints: Sequence[Checkpoint], size: tuple[float, float]) -> Figure:
    """Distance over the normalised layer index, as the paper's Fig. 3; `size` in inches."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for checkpoint, colour in zip(checkpoints, COLOURS, strict=False):
            # An undefined distance is a gap in the line.
            points = [(b.position, np.nan if b.distance is None else b.distance)
                      for b in checkpoint.blocks]  # fmt: skip
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linewidth=1.8,
                marker="o",
                markersize=4,
                label=checkpoint.label,
            )
        axes.set_ylim(0, axes.get_ylim()[1] * 1.06)
        axes.patch.set_visible(False)
        axes.set_xlabel("normalised layer index")
        axes.set_ylabel("cosine distance")
        return figure


def curve_png(checkpoints: Sequence[Checkpoint]) -> bytes:
    figure = distance_curve(checkpoints, SHEET_SIZE)
    with rc_context(STYLE):
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=LIGHT["soft"])
        return _png(figure)


def activations_png(photos: NDArray[np.uint8], checkpoints: Sequence[Checkpoint]) -> bytes:
    """Photos (N, H, W, 3) on the left, each checkpoint's maps of them beside (paper, Fig. 2)."""
    count, columns = len(photos), 1 + len(checkpoints)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3.2 * columns, 3.2 * count + 0.4), layout="constrained")
        grid = figure.subplots(count, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.patch.set_visible(False)
        for row, photo in zip(grid, photos, strict=True):
            row[0].imshow(photo)
        for column, checkpoint in enumerate(checkpoints, start=1):
            grid[0][column].set_title(
                f"{checkpoint.label}\n{checkpoint.drawn}", fontsize=9, color=LIGHT["ink"]
            )
            for axes, maps in zip(grid[:, column], checkpoint.maps, strict=True):
                axes.imshow(coloured(maps))
        return _png(figure)


def coloured(maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, h, w) maps laid out in a square as RGBA, transparent between them."""
    scale = Normalize(*np.percentile(maps, (1, 99)))
    return colormaps["viridis"](scale(np.ma.masked_invalid(tiled(maps))), bytes=True)


def tiled(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay (C, h, w) maps out in a square, NaN between them."""
    count, height, width = maps.shape
    side = int(np.ceil(np.sqrt(count)))
    gap = max(1, height // 14)
    sheet = np.full(
        (side * (height + gap) - gap, side * (width + gap) - gap), np.nan, dtype=np.float32
    )
    for number, one in enumerate(maps):
        top, left = number // side * (height + gap), number % side * (width + gap)
        sheet[top : top + height, left : left + width] = one
    return sheet


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=LIGHT["paper"], transparent=False)
    return buffer.getvalue()
