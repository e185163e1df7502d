"""The look of the pages: legible on light and dark screens, and whole on paper."""

import re

import numpy as np
import pytest

from convnextv2.analysis.collapse import BlockCollapse
from pipelines.report.charts import LIGHT
from pipelines.report.collapse import collapse_page
from pipelines.report.collapse_charts import Checkpoint
from pipelines.report.html import render

RGB = tuple[float, float, float]
LEGIBLE = 4.5
"""Least contrast of text in WCAG 2.1, level AA."""


@pytest.fixture(scope="module")
def css() -> str:
    return render("report.css.j2")


def block(css: str, opening: str) -> str:
    """What stands between the braces after `opening`."""
    start = css.index(opening) + len(opening)
    depth, end = 1, start
    while depth:
        depth += {"{": 1, "}": -1}.get(css[end], 0)
        end += 1
    return css[start:end]


def theme(css: str, name: str) -> dict[str, RGB]:
    """Colours by variable name, from 0 to 1; dark ones are laid over the light ones."""
    found = dict(re.findall(r"--([\w-]+): #(\w{6});", block(css, ":root {")))
    if name == "dark":
        dark = block(css, "@media screen and (prefers-color-scheme: dark) {")
        found |= dict(re.findall(r"--([\w-]+): #(\w{6});", dark))
    return {
        name: (int(text[:2], 16) / 255, int(text[2:4], 16) / 255, int(text[4:], 16) / 255)
        for name, text in found.items()
    }


def contrast(first: RGB, second: RGB) -> float:
    """As WCAG 2.1 defines it, from 1 to 21."""

    def luminance(colour: RGB) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    grey = (0x77 / 255,) * 3
    assert contrast(grey, (1, 1, 1)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_is_legible(name: str, css: str) -> None:
    colours = theme(css, name)
    for text in ("ink", "soft", "pretrained", "warn"):
        assert contrast(colours[text], colours["paper"]) >= LEGIBLE, text
    # The cells of a confusion matrix, at their fullest.
    (share,) = re.findall(r"opacity: calc\(([\d.]+) \* var\(--heat\)\)", css)
    for heat in ("pretrained", "scratch", "warn"):
        red, green, blue = (
            float(share) * filled + (1 - float(share)) * paper
            for filled, paper in zip(colours[heat], colours["paper"], strict=True)
        )
        assert contrast(colours["ink"], (red, green, blue)) >= LEGIBLE, heat


def test_every_colour_has_a_dark_one(css: str) -> None:
    light, dark = theme(css, "light"), theme(css, "dark")
    assert set(LIGHT) <= set(light)
    assert [name for name in light if light[name] == dark[name]] == []


def test_paper_is_light_and_keeps_everything(css: str) -> None:
    # Dark colours are for screens alone: a browser that prints a dark page leaves out its paper.
    schemes = re.findall(r"@media ([^{]*prefers-color-scheme[^{]*) \{", css)
    assert schemes == ["screen and (prefers-color-scheme: dark)"]
    printed = block(css, "@media print {")
    assert "display: none" not in printed
    assert "details::details-content { content-visibility: visible;" in printed
    (whole,) = re.findall(r"([^{}]*)\{ break-inside: avoid; \}", printed)
    names = {name.strip() for name in whole.split(",")}
    assert names >= {"tr", "figure", ".samples", ".bars", ".training", ".matrices > div"}
    # A section may go over pages; only what is in it stays together.
    assert "section" not in names


def test_curves_and_maps_of_the_collapse_page_have_no_paper_of_their_own() -> None:
    rng = np.random.default_rng(0)
    blocks = [
        BlockCollapse(block=f"stages.{n}.0", position=n / 3, channels=8, distance=0.4, dead=0.0)
        for n in range(4)
    ]
    measured = Checkpoint(
        label="a", blocks=blocks, drawn="stages.2.0", maps=rng.random((2, 9, 4, 4), np.float32)
    )
    photos = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    page = collapse_page([measured], photos, facts={}, skipped=[])
    (svg,) = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert re.findall(r"#\w{6}\b", re.sub(r"var\([^)]*\)", "", svg)) == []
    assert "normalised layer index</text>" in svg
    assert page.count("<img") == 4
