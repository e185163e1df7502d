"""Image collections in the layouts that users have; `open_source` recognises the layout.

Every layout is read in place, one part after another, from front to back; nothing is unpacked.
"""

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from convnextv2 import PathLike
from convnextv2.data.collection import DataError, Source, Split
from convnextv2.data.sources.folders import (
    ANNOTATIONS,
    has_images,
    open_folders,
    open_tiny_val,
)
from convnextv2.data.sources.idx import open_idx
from convnextv2.data.sources.leftovers import is_leftover
from convnextv2.data.sources.listing import IMAGE_SUFFIXES, SPLIT_NAMES, missing_split
from convnextv2.data.sources.lists import LIST_SUFFIXES, ListSource, find_metadata, open_list
from convnextv2.data.sources.parquet import (
    BELOW,
    NEAR,
    Columns,
    ParquetFiles,
    find_parquet_files,
    open_parquet_files,
)
from convnextv2.data.sources.passed_over import describe_kinds
from convnextv2.data.sources.tars.archive import Archive
from convnextv2.data.sources.tars.class_tars import ClassTars, open_tar_of_tars
from convnextv2.data.sources.tars.flat_tar import TRAIN_TAR, VAL_TAR, open_val_tar
from convnextv2.data.sources.tars.folder_tar import open_single_tar
from convnextv2.data.sources.webdataset import has_label_beside, open_webdataset

__all__ = ["IMAGE_SUFFIXES", "Columns", "describe_kinds", "open_source"]

IMAGENET_TARS: dict[Split, str] = {"train": TRAIN_TAR, "val": VAL_TAR}
_SYNSET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"(^|.*[-_.])\d+([-_.]?of[-_.]?\d+)?")
_PEEKED = 8


def open_source(
    root: PathLike,
    split: Split,
    labels: PathLike | None = None,
    columns: Columns | None = None,
) -> Source:
    """Open the `split` of the collection at `root`: a folder, a tar, a parquet file, or a list.

    Where the collection has no splits (no folders or files named for them), all of it is listed,
    and the source's `has_splits` is false. Folders `train/` and `val/` take precedence over other
    things beside them. `labels` is the label file of ImageNet-1K's validation tar, if it is not
    beside it; `columns` are those of parquet files and lists, if not the ones found by themselves.

    Raises:
        DataError: When nothing usable is there, or the layout is ambiguous.
    """
    root, labels = Path(root), None if labels is None else Path(labels)
    source = _open(root, split, labels, columns or Columns())
    if columns in (None, Columns()) or isinstance(source, ListSource):
        return source
    if columns is not None and columns.multi_label:
        raise DataError(
            f"{root}: images of several labels (data.multi_label) are read from a list, as CSV, "
            "TSV, JSON or JSON lines"
        )
    if not isinstance(source, ParquetFiles):
        raise DataError(
            f"{root} is no list and has no parquet files, of which image and label columns are "
            "named"
        )
    return source


def _open(root: Path, split: Split, labels: Path | None, columns: Columns) -> Source:
    if not root.exists():
        raise DataError(f"data folder {root} does not exist")
    if root.is_file():
        return _open_file(root, split, labels, columns)
    for name in SPLIT_NAMES[split]:
        if (root / name).is_dir():
            return _open_folder(root / name, split, labels, columns, has_splits=True)
    others = [name for names in SPLIT_NAMES.values() for name in names if (root / name).is_dir()]
    if others and not (root / IMAGENET_TARS[split]).exists():
        raise missing_split(root, f"a folder {others[0]}", split)
    return _open_folder(root, split, labels, columns, has_splits=bool(others))


def _open_file(path: Path, split: Split, labels: Path | None, columns: Columns) -> Source:
    if path.suffix == ".tar":
        return _open_tars(path.parent, [path.name], split, labels, has_splits=False)
    if path.suffix == ".parquet":
        return open_parquet_files(path.parent, [path.name], split, False, columns)
    if path.name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise DataError(f"{path} is compressed and cannot be read in place: make it a .tar first")
    if path.suffix in LIST_SUFFIXES:
        _refuse_labels(labels, path)
        return open_list(path, split, columns)
    raise DataError(
        f"{path} is a file; give a .tar, a .parquet, a list ({', '.join(LIST_SUFFIXES)}), or the "
        "folder it lies in"
    )


def _open_folder(
    root: Path, split: Split, labels: Path | None, columns: Columns, has_splits: bool
) -> Source:
    names = sorted(entry.name for entry in os.scandir(root) if not is_leftover(entry.name))
    if any("-images-idx3-ubyte" in name for name in names):
        return open_idx(root, split)
    if set(IMAGENET_TARS.values()) & set(names):
        return _open_imagenet(root, split, labels)
    if ANNOTATIONS in names:
        _refuse_labels(labels, root)
        return open_tiny_val(root, has_splits)
    tars = [name for name in names if name.endswith(".tar")]
    tables = find_parquet_files(root, NEAR)
    folder = next((name for name in names if has_images(root / name)), None)
    if not tars and not tables and not folder:
        tables = find_parquet_files(root, BELOW)
    if tables and not folder and _are_about(tables, tars):
        _refuse_labels(labels, root)
        note = f"{root}: {tables[0]} and the like are about the tars beside them, and not read"
        return open_webdataset(root, tars, split, has_splits, (note,))
    if not tars and not tables:
        _refuse_labels(labels, root)
        metadata = find_metadata(root, columns)
        if metadata is not None:
            return open_list(metadata, split, columns, has_splits)
        return open_folders(root, has_splits)
    found = [*tars[:1], *tables[:1], *([f"{folder}/"] if folder else [])]
    if len(found) > 1:
        raise DataError(
            f"{root} holds {' and '.join(found)}: which of them is meant? Give a folder with one "
            "kind, or the file itself"
        )
    if tables:
        _refuse_labels(labels, root)
        return open_parquet_files(root, tables, split, has_splits, columns)
    return _open_tars(root, tars, split, labels, has_splits)


def _are_about(tables: Sequence[str], tars: Sequence[str]) -> bool:
    """Whether the tables describe the tars, as img2dataset's `00000.parquet` does `00000.tar`."""
    stems = {name.removesuffix(".tar") for name in tars}
    about = [name.removesuffix(".parquet") for name in tables]
    return stems.issuperset(about) and all(map(_NUMBERED.fullmatch, about))


def _open_imagenet(root: Path, split: Split, labels: Path | None) -> Source:
    path = root / IMAGENET_TARS[split]
    if not path.exists():
        raise DataError(f"{root} has no {path.name}, which is ImageNet-1K's {split!r} split")
    if split == "val":
        return open_val_tar(path, labels, has_splits=True)
    return open_tar_of_tars(path, has_splits=True)


def _open_tars(
    root: Path, tars: Sequence[str], split: Split, labels: Path | None, has_splits: bool
) -> Source:
    stems = [name.removesuffix(".tar") for name in tars]
    synsets = [stem for stem in stems if _SYNSET.fullmatch(stem)]
    kind = _peek(root / tars[0])
    if len(tars) == 1 and kind == "images" and (labels or tars[0] == VAL_TAR):
        return open_val_tar(root / tars[0], labels, has_splits)
    _refuse_labels(labels, root)
    if synsets and len(synsets) == len(tars):
        return ClassTars(root, tuple(sorted(stems)), has_splits=has_splits)
    if synsets or (kind == "tars" and len(tars) > 1):
        others = [stem for stem in stems if not _SYNSET.fullmatch(stem)]
        first, second = [*synsets[:1], *others][:2]
        raise DataError(
            f"{root} holds {len(tars):,} tars, such as {first}.tar and {second}.tar, that are no "
            "one collection: which are meant? Give a folder with these alone, or the file itself"
        )
    if kind == "tars":
        return open_tar_of_tars(root / tars[0], has_splits)
    if kind == "samples" or (len(tars) > 1 and all(map(_NUMBERED.fullmatch, stems))):
        return open_webdataset(root, tars, split, has_splits)
    if len(tars) == 1:
        return open_single_tar(root / tars[0], split, has_splits)
    return ClassTars(root, tuple(sorted(stems)), has_splits=has_splits)


def _peek(path: Path) -> Literal["tars", "samples", "images"]:
    """What a tar holds, by its first members: tars, images with labels beside them, or images.

    Raises:
        DataError: When it is no tar.
    """
    archive = Archive(path, str(path))
    with archive.open() as file:
        names = (entry.name for entry in archive.entries(file) if not is_leftover(entry.name))
        head = list(islice(names, _PEEKED))
    if any(name.endswith(".tar") for name in head):
        return "tars"
    return "samples" if has_label_beside(head) else "images"


def _refuse_labels(labels: Path | None, root: Path) -> None:
    if labels is not None:
        raise DataError(
            f"{root} has labels of its own, or none: a label file ({labels}) is read for "
            f"{VAL_TAR} only"
        )
