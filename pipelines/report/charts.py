"""Pictures of the report: curves as inline SVG, samples as PNG; the same bytes for the same data.

Curves are drawn in the light theme's colours; in the SVG each colour becomes a CSS variable of
the page with that colour as its fallback, so one picture serves light and dark.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from pipelines.runtime.events import Measured

LIGHT = {
    "paper": "#fbfaf7",
    "ink": "#1d1c1a",
    "soft": "#6b6860",
    "rule": "#e3e0d8",
    "pretrained": "#0f766e",
    "scratch": "#97928a",
    "warn": "#b4541a",
}
"""The page's colours by name; report.css.j2 has the dark ones."""

MOST_POINTS = 240
SIZE = (3.7, 2.7)
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": LIGHT["soft"],
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["soft"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "savefig.transparent": True,
}
SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def chart(
    title: str,
    value: str,
    series: Mapping[str, Sequence[Measured]],
    *,
    restarts: Sequence[int] = (),
    learning_rate: bool = False,
    percent: bool = False,
) -> Markup:
    """Draw `value` of points over their step: faint as measured, bold as a moving average.

    Args:
        title: Description for screen readers.
        value: Key of the points.
        series: Points by the colour name of their line.
        restarts: Steps at which a worker group took over.
        learning_rate: Show the points' "lr" in a strip below.
        percent: Values are shares from 0 to 1.
    """
    # The last one drawn is on top.
    back_to_front = list(series.items())[::-1]
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        if learning_rate:
            axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
            _draw_learning_rate(strip, back_to_front)
        else:
            axes = strip = figure.subplots()
        for name, points in back_to_front:
            steps, values = thinned(points, value)
            axes.plot(steps, values, color=LIGHT[name], alpha=0.3, linewidth=0.8)
            alone = "o" if len(steps) == 1 else None
            axes.plot(steps, smoothed(values), color=LIGHT[name], linewidth=1.8, marker=alone)
        for step in restarts:
            axes.axvline(step, color=LIGHT["warn"], linewidth=0.9, linestyle=(0, (3, 2)))
            axes.annotate(
                "restart", (step, 0.99), (3, 0), textcoords="offset points", va="top",
                xycoords=axes.get_xaxis_transform(), color=LIGHT["warn"], fontsize=8,
            )  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        strip.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        strip.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        strip.set_xlabel("step")
        return themed_svg(figure, title)


def _draw_learning_rate(axes: Axes, series: Sequence[tuple[str, Sequence[Measured]]]) -> None:
    for name, points in series:
        steps, rates = thinned(points, "lr")
        axes.fill_between(steps, rates, color=LIGHT[name], alpha=0.15, linewidth=0)
        axes.plot(steps, rates, color=LIGHT[name], linewidth=1)
    peak = max(point.values["lr"] for _, points in series for point in points)
    axes.set_ylim(0, peak * 1.05 or 1)
    axes.set_yticks([peak], [f"lr {peak:.2g}"])


def thinned(
    points: Sequence[Measured], value: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values, averaged in equal groups down to at most MOST_POINTS."""
    pairs = np.array([(point.step, point.values[value]) for point in points], dtype=np.float64)
    groups = np.array_split(pairs, min(len(pairs), MOST_POINTS))
    steps, values = np.array([group.mean(axis=0) for group in groups]).T
    return steps, values


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving average over a twentieth of the curve; narrower at its ends."""
    reach = len(values) // 40
    windows = (
        values[max(0, middle - width) : middle + width + 1]
        for middle in range(len(values))
        for width in [min(reach, middle, len(values) - 1 - middle)]
    )
    return np.array([window.mean() for window in windows])


def themed_svg(figure: Figure, title: str) -> Markup:
    """Render for inlining: no metadata, page-wide styles or spare ids; colours as variables."""
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg")
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter(f"{{{SVG}}}text"):
        element.set("style", re.sub(r"font-family:[^;]*;?", "", element.get("style", "")))
    for group in root.iter(f"{{{SVG}}}g"):
        group.attrib.pop("id", None)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute)
    root.set("role", "img")
    root.set("aria-label", title)
    text = ElementTree.tostring(root, encoding="unicode")
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    return Markup(text)


def picture(image: NDArray[np.uint8], label: str) -> Markup:
    """An (H, W, 3) image as an <img>; small ones are enlarged pixel by pixel."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = image.shape[:2]
    small = "pixels" if max(height, width) <= 96 else "photo"
    return Markup(
        f'<img class="{small}" width="{width}" height="{height}" alt="{escape(label)}" '
        f'src="data:image/png;base64,{data}">'
    )


def png(content: bytes, label: str) -> Markup:
    """A PNG as an <img>."""
    width, height = Image.open(io.BytesIO(content)).size
    data = base64.b64encode(content).decode()
    return Markup(
        f'<img class="photo" width="{width}" height="{height}" alt="{escape(label)}" '
        f'src="data:image/png;base64,{data}">'
    )


def pictures(images: NDArray[np.uint8], label: str) -> Iterator[Markup]:
    """`picture` of every image of a batch."""
    return (picture(image, f"{label} {number}") for number, image in enumerate(images, start=1))
