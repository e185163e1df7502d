"""The figures of `make bench-data`: medians over the turns, and Markdown tables of them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

from rich import box
from rich.console import Console
from rich.table import Table

from pipelines.bench.turns import median_ratio

WIDTH = 140
Figures = dict[str, dict[str, float]]
"""Figures by name, for each thing measured."""


class Decoding(TypedDict):
    """Speed by crop and mode ("224 reduced"), and changes of pixels by crop, then by mode."""

    pixels: dict[str, Figures]
    speed: Figures


class Results(TypedDict):
    """All figures, measured on `images` in `turns` of `seconds`; memory on `samples` samples."""

    images: str
    turns: int
    seconds: float
    loaders: Figures
    decode: Decoding
    writing: Figures
    startup: Figures
    samples: int
    memory: Figures


def summary(rates: Mapping[str, Sequence[float]], against: Mapping[str, str]) -> Figures:
    """Median, lowest and highest rate of each contender, and its median ratios.

    `against` maps the name of a ratio to the contender it is relative to; ratios are taken turn by
    turn. A ratio whose name ends in "faster_by" is inverted: it tells how much faster the other is.
    """
    rows = {}
    for name, own in rates.items():
        row = {"median": statistics.median(own), "lowest": min(own), "highest": max(own)}
        for ratio, other in against.items():
            pair = (rates[other], own) if ratio.endswith("faster_by") else (own, rates[other])
            row[ratio] = median_ratio(*pair)
        rows[name] = row
    return rows


def show(results: Results) -> None:
    """Print all tables, wide enough for every row to stay one line."""
    console = Console(width=WIDTH)
    for make in (_loaders, _decode, _writing, _startup, _memory):
        table = make(results)
        table.box, table.title_justify = box.MARKDOWN, "left"
        console.print(table, "")


def _loaders(results: Results) -> Table:
    table = Table(
        *("loader", "images/s", "lowest to highest", "of the bare loop", "ours is faster by"),
        title=f"{results['images']}, 500 px, JPEG q90, random crop to 224 px, 2 workers; "
        f"{results['turns']} turns",
    )
    for name, row in results["loaders"].items():
        table.add_row(
            name,
            f"{row['median']:,.0f}",
            f"{row['lowest']:,.0f} to {row['highest']:,.0f}",
            f"{row['of_bare']:.2f}",
            f"{row['ours_is_faster_by']:.2f} x",
        )
    return table


def _decode(results: Results) -> Table:
    table = Table(
        *("crop", "decode", "images/s", "views affected", "mean difference in them"),
        *("99% are within", "largest"),
        title="how much is decoded, against all of it (levels of 255)",
    )
    for name, row in results["decode"]["speed"].items():
        crop, decode = name.split()
        pixels = results["decode"]["pixels"][crop].get(decode)
        figures = ["–"] * 4
        if pixels is not None:
            figures = [
                f"{pixels['affected']:.1%}",
                f"{pixels['mean']:.2f}",
                f"{pixels['p99']:.0f}",
                f"{pixels['largest']}",
            ]
        table.add_row(f"{crop} px", decode, f"{row['median']:,.0f}", *figures)
    return table


def _writing(results: Results) -> Table:
    table = Table("writing, one process", "images/s", "bare loop, images/s", "of the bare loop")
    for name, row in results["writing"].items():
        table.add_row(
            name,
            f"{row['images_per_second']:,.0f}",
            f"{row['bare_images_per_second']:,.0f}",
            f"{row['of_bare']:.2f}",
        )
    return table


def _startup(results: Results) -> Table:
    table = Table("start-up in a fresh process", "import, s", "to the first batch, s")
    for name, row in results["startup"].items():
        table.add_row(name, f"{row['import']:.2f}", f"{row['first_batch']:.2f}")
    return table


def _memory(results: Results) -> Table:
    table = Table(
        *("loader", "private bytes", "Pss bytes"),
        title=f"memory per sample and process, 2 processes on {results['samples']:,} samples",
    )
    for name, row in results["memory"].items():
        table.add_row(name, f"{row['private']:.1f}", f"{row['pss']:.1f}")
    return table
