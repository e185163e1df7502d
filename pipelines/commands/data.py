"""Commands on image collections: `data write`, `data info`, `data verify`, `data sample`."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from pipelines.commands import Commands, command, command_group
from pipelines.commands.data_info import add_info_command
from pipelines.commands.data_sample import add_sample_command
from pipelines.config import WriteConfig

if TYPE_CHECKING:
    from convnextv2.data.collection import Source
    from convnextv2.data.selection import Selection

Item = TypeVar("Item")
Result = TypeVar("Result")
WRITE_EXAMPLE = (
    "convnextv2 data write /data/imagenet22k shards/train --max-resolution 384 --num-workers 32"
)
MODES = get_args(WriteConfig.model_fields["mode"].annotation)


def add_data_commands(commands: Commands) -> None:
    """Add `data` and its verbs."""
    verbs = command_group(commands, "data", "work with image collections", WRITE_EXAMPLE)
    _add_write(verbs)
    add_info_command(verbs, _add_source_options, _open)
    verify = command(
        verbs,
        "verify",
        "compare shards with their manifest, every byte",
        "convnextv2 data verify shards/train --decode",
        _act_verify,
    )
    verify.add_argument("folder", type=Path, help="a folder of shards")
    verify.add_argument("--decode", action="store_true", help="decode every image, too")
    add_sample_command(verbs)


def _add_write(verbs: Commands) -> None:
    write = command(
        verbs,
        "write",
        "write a collection as shards, one split to a folder",
        WRITE_EXAMPLE,
        _act_write,
    )
    write.add_argument("source", type=Path, help="the collection: any layout of docs/data.md")
    write.add_argument("destination", type=Path, help="the folder for the shards")
    _add_source_options(write)
    usual = WriteConfig()
    write.add_argument(
        "--mode",
        choices=MODES,
        default=usual.mode,
        help="how images are stored, as in FFCV's RGBImageField: all as JPEG, as pixels (raw), or "
        "some of each (default: %(default)s)",
    )
    write.add_argument("--max-resolution", type=int, help="longest side in pixels (default: any)")
    write.add_argument(
        "--jpeg-quality",
        type=int,
        default=usual.jpeg_quality,
        help="1 to 100 (default: %(default)s)",
    )
    write.add_argument(
        "--smart-threshold", type=int, help="bytes from which --mode smart stores a JPEG"
    )
    write.add_argument(
        "--compress-probability",
        type=float,
        default=usual.compress_probability,
        help="share that --mode proportion stores as JPEG (default: %(default)s)",
    )
    size = write.add_mutually_exclusive_group()
    size.add_argument(
        "--shard-gb",
        type=float,
        default=usual.shard_gb,
        help="size of a shard in GB (default: %(default)s)",
    )
    size.add_argument("--num-shards", type=int, help="number of shards, instead of their size")
    write.add_argument(
        "--max-unreadable",
        type=int,
        default=usual.max_unreadable,
        help="images that may be skipped because they cannot be read (default: %(default)s)",
    )
    write.add_argument(
        "--num-workers", type=int, default=2, help="shards written at a time (default: 2)"
    )
    write.add_argument("--address", help="a running Ray cluster (default: one is started here)")


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split", choices=("train", "val"), default="train", help="the split (default: train)"
    )
    parser.add_argument("--labels", type=Path, help="label file of ImageNet-1K's validation tar")
    parser.add_argument("--image-column", help="column of parquet files or lists with the images")
    parser.add_argument("--label-column", help="column of parquet files or lists with the labels")
    parser.add_argument(
        "--multi-label", action="store_true", help="images of a list may be of several classes"
    )
    parser.add_argument(
        "--val-fraction", type=float, help="share of the training images that becomes the split val"
    )
    parser.add_argument(
        "--labels-per-class", type=int, help="keep at most this many images per class"
    )
    parser.add_argument("--classes", type=Path, help="file with the classes to keep, one a line")
    parser.add_argument("--max-images", type=int, help="keep at most this many images in all")
    parser.add_argument(
        "--channels",
        type=int,
        default=3,
        help="channels of an image (default: 3, which converts all to RGB)",
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 16),
        help="bits of a value (default: 8 for 3 channels, else as in the files)",
    )


def _open(path: Path, options: argparse.Namespace) -> "tuple[Source, Selection]":
    from convnextv2.data.selection import Selection, open_selected
    from convnextv2.data.sources import Columns
    from pipelines.stages.write_data import read_classes

    selection = Selection(
        split=options.split,
        val_fraction=options.val_fraction,
        classes=read_classes(options.classes),
        labels_per_class=options.labels_per_class,
        max_images=options.max_images,
    )
    columns = Columns(options.image_column, options.label_column, options.multi_label)
    return open_selected(path, selection, options.labels, columns)


def _act_write(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cluster.launch import Cluster, Placement
    from convnextv2.data.writing import write_collection
    from convnextv2.data.writing.plan import progress
    from pipelines.runtime.console import Screen
    from pipelines.stages.write_data import write_settings

    # Not validated here: the writer's own settings are, and name all that is wrong.
    given = {name: getattr(options, name) for name in WriteConfig.model_fields}
    settings = write_settings(
        WriteConfig.model_construct(**given), options.channels, options.num_shards
    )
    source, selection = _open(options.source, options)
    screen = Screen(Console(stderr=True, soft_wrap=True))
    placement = Placement(num_workers=options.num_workers, address=options.address)

    def show() -> None:
        done, planned = progress(options.destination)
        if planned:
            screen.progress(min(1.0, done / planned), f"{done:,} of {planned:,} images")

    def run(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return cluster.map(function, items, while_waiting=show)

    with Cluster(placement) as cluster:
        screen.starts("write", f"{options.source} to {options.destination}")
        try:
            manifest = write_collection(
                source,
                str(options.source),
                options.destination,
                selection,
                settings,
                run=run,
                note=screen.note,
            )
        finally:
            screen.stop()
    if options.json:
        print(json.dumps(asdict(manifest), indent=1))
    else:
        print(
            f"{options.destination}: {manifest.samples:,} images of {len(manifest.classes):,} "
            f"classes in {len(manifest.shards)} shards, {manifest.bytes / 1e6:,.1f} MB"
        )
        for name, reason in manifest.skipped:
            print(f"  skipped {name}: {reason}")
    return 0


def _act_verify(options: argparse.Namespace) -> int:
    from rich.console import Console

    from pipelines.runtime.console import Screen

    screen = Screen(Console(stderr=True, soft_wrap=True))
    screen.starts("verify", f"comparing {options.folder} with its manifest")
    try:
        from convnextv2.data.shards.check import check

        problems = check(options.folder, decode=options.decode, progress=screen.progress)
    finally:
        screen.stop()
    if options.json:
        print(json.dumps({"folder": str(options.folder), "problems": problems}, indent=1))
    elif problems:
        print("\n".join(problems))
    else:
        print(f"{options.folder}: every byte is as it was written")
    return 1 if problems else 0
