"""Command `data info`: what a folder of shards holds, or what a collection would take."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipelines.commands import Commands, command

if TYPE_CHECKING:
    from convnextv2.data.collection import Source
    from convnextv2.data.selection import Selection
    from pipelines.runtime.console import Screen

SIDES = (256, 384, 512)

Item = TypeVar("Item")
Result = TypeVar("Result")
Open = Callable[[Path, argparse.Namespace], "tuple[Source, Selection]"]
Told = tuple[Mapping[str, object], list[tuple[str, str]]]
"""What is found as JSON, and as rows for people."""


def add_info_command(
    verbs: Commands, add_source_options: Callable[[argparse.ArgumentParser], None], opened: Open
) -> None:
    """Add the verb `info`; `opened` makes source and selection of the options."""
    info = command(
        verbs,
        "info",
        "what a folder of shards holds, or what a collection would take",
        "convnextv2 data info /data/imagenet22k",
        _act_info,
    )
    info.add_argument("path", type=Path, help="a folder of shards, or a collection")
    add_source_options(info)
    info.add_argument(
        "--stats",
        action="store_true",
        help="of shards: mean and deviation of each channel, for values from 0 to 1",
    )
    info.set_defaults(opened=opened)


def _act_info(options: argparse.Namespace) -> int:
    from rich.console import Console

    from pipelines.runtime.console import Screen

    if options.stats and not _holds_shards(options.path):
        raise ValueError(
            f"--stats is for shards, {options.path} has none; the channels of a collection are "
            f"measured as it is written: convnextv2 data write {options.path} FOLDER"
        )
    screen = Screen(Console(stderr=True, soft_wrap=True))
    screen.starts("info", f"looking at {options.path}")
    try:
        facts, rows = (
            _of_shards(options) if _holds_shards(options.path) else _of_collection(options, screen)
        )
    finally:
        screen.stop()
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        for name, value in rows:
            print(f"{name:>24}  {value}")
    return 0


def _holds_shards(path: Path) -> bool:
    from convnextv2.data.shards.manifest import MANIFEST

    return (path / MANIFEST).exists()


def _of_shards(options: argparse.Namespace) -> Told:
    from convnextv2.data.shards.check import describe, measure

    facts, measured = describe(options.path), {}
    if options.stats:
        found = measure(options.path)
        for name in ("mean", "std"):
            facts[name] = [round(value, 6) for value in getattr(found, name)]
            measured[name] = " ".join(f"{value:.6f}" for value in facts[name])
    counts, sides = facts["images_per_class"], facts["longest_side_pixels"]
    rows = {
        "split": facts["split"],
        "images": f"{facts['images']:,}, {facts['skipped_images']:,} skipped",
        "classes": f"{facts['classes']:,}",
        "images per class": _spread(counts) if counts else "-",
        "shards": f"{facts['shards']:,}",
        "size": f"{facts['bytes'] / 1e9:,.3g} GB, {facts['bytes_per_image']:,} bytes per image",
        "longest side": f"{_spread(sides)} pixels",
        "channels": f"{facts['channels']}, of {facts['bits']} bits",
        **measured,
        "JPEG": f"{facts['jpeg_share']:.1%}",
        "source": facts["source"],
        "fingerprint": facts["fingerprint"],
    }
    return facts, list(rows.items())


def _spread(numbers: dict[str, float]) -> str:
    return f"{numbers['least']:,} to {numbers['most']:,}, median {numbers['median']:,g}"


def _of_collection(options: argparse.Namespace, screen: "Screen") -> Told:
    """What a collection holds and would take as JPEGs of some sizes."""
    from convnextv2.data.writing import WriteSettings
    from convnextv2.data.writing.estimate import estimate
    from convnextv2.data.writing.plan import choose
    from convnextv2.data.writing.settle import settle

    def listed(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        parts = list(items)
        for number, part in enumerate(parts):
            screen.progress(0.5 * number / len(parts), "listing the images")
            yield function(part)

    source, selection = options.opened(options.path, options)
    notes: list[str] = []
    sequence, classes = choose(source, selection, 0, listed, notes.append)
    asked = WriteSettings(channels=options.channels, bits=options.bits)
    settings = settle(source, sequence, asked, notes.append)
    written = []
    for number, side in enumerate(SIDES):
        screen.progress(0.5 + 0.5 * number / len(SIDES), f"writing a few at {side} px")
        expected = estimate(source, sequence, replace(settings, max_resolution=side))
        written.append(
            {
                "max_resolution_pixels": side,
                "bytes": expected.bytes,
                "hours_on_one_core": expected.seconds / 3600,
            }
        )
    facts = {
        "images": len(sequence),
        "classes": len(classes),
        "source_bytes": expected.source_bytes,
        "sampled_images": expected.sampled,
        "unreadable_sampled_images": expected.unreadable,
        "written": written,
        "notes": notes,
    }
    rows = {
        "images": f"{len(sequence):,}",
        "classes": f"{len(classes):,}",
        "source": f"{expected.source_bytes / 1e9:.3g} GB",
        **{
            f"at {each['max_resolution_pixels']} px": f"{each['bytes'] / 1e9:.3g} GB, "
            f"{each['hours_on_one_core']:.2g} hours on one core"
            for each in written
        },
        "unreadable": f"{expected.unreadable} of {expected.sampled} looked at",
    }
    return facts, [*rows.items(), *(("notes", note) for note in notes)]
