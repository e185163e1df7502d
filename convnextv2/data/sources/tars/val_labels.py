"""Label files of ImageNet-1K's validation images, in each form in which they are distributed."""

import csv
import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from convnextv2.data.collection import DataError

TRUTH = "ILSVRC2012_validation_ground_truth.txt"
VAL_LABEL_FILES = (
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
    "val.txt",
    "ILSVRC2012_devkit_t12.tar.gz",
    f"ILSVRC2012_devkit_t12/data/{TRUTH}",
)
SYNSET_LISTS = ("synsets.txt", "synset_words.txt", "LOC_synset_mapping.txt")
_SYNSET = re.compile(r"n\d{8}")


def find_val_labels(tar: Path) -> Path:
    """The label file beside the validation tar.

    Raises:
        DataError: When there is none.
    """
    for name in VAL_LABEL_FILES:
        if (tar.parent / name).is_file():
            return tar.parent / name
    raise DataError(
        f"{tar} needs its label file beside it, or given as --labels: one of "
        f"{', '.join(VAL_LABEL_FILES)}"
    )


def read_val_labels(path: Path, names: Sequence[str], synsets: Sequence[str]) -> dict[str, str]:
    """Synset of each of the images `names` (file names without folders).

    `synsets` are the classes in the order of their numbers, if known; label files that hold class
    numbers need them.

    Raises:
        DataError: When the file has no known format, or lacks labels.
    """
    try:
        told = _read(path, sorted(names), synsets)
    except (OSError, UnicodeDecodeError, tarfile.TarError) as error:
        raise DataError(f"label file {path} cannot be read: {error}") from error
    missing = [name for name in names if name not in told]
    if missing:
        raise DataError(f"{path} lacks {len(missing):,} labels, such as that of {missing[0]}")
    return {name: told[name] for name in names}


def _read(path: Path, names: Sequence[str], synsets: Sequence[str]) -> dict[str, str]:
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        with tarfile.open(path) as kit:
            truth, meta = (_unpack(kit, path, name) for name in (TRUTH, "meta.mat"))
        return _in_order(path, names, _devkit(truth.decode().split(), meta))
    lines = path.read_text().split("\n")
    rows = [line.split() for line in lines if line.strip()]
    if not rows:
        raise DataError(f"label file {path} is empty")
    if rows[0][0].startswith("ImageId"):
        told = csv.DictReader(lines)
        return {f"{row['ImageId']}.JPEG": row["PredictionString"].split()[0] for row in told}
    if all(len(row) == 1 and _SYNSET.fullmatch(row[0]) for row in rows):
        return _in_order(path, names, [row[0] for row in rows])
    if all(len(row) == 1 and row[0].isdigit() for row in rows):
        meta_path = path.with_name("meta.mat")
        if not meta_path.exists():
            raise DataError(
                f"{path} holds ILSVRC2012_IDs, which are not in the order of the synsets: put the "
                "devkit's data/meta.mat beside it"
            )
        return _in_order(path, names, _devkit([row[0] for row in rows], meta_path.read_bytes()))
    if all(len(row) == 2 and row[1].isdigit() for row in rows):
        return _numbered(path, rows, synsets or _read_synsets(path))
    raise DataError(
        f"{path} is no label file of ImageNet's validation images; understood are "
        f"{', '.join(VAL_LABEL_FILES)}"
    )


def _in_order(path: Path, names: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    if len(names) != len(labels):
        raise DataError(f"{path} has {len(labels):,} labels, the tar {len(names):,} images")
    return dict(zip(names, labels, strict=True))


def _numbered(path: Path, rows: list[list[str]], synsets: Sequence[str]) -> dict[str, str]:
    ordered = sorted(synsets)
    largest = max(int(number) for _, number in rows)
    if largest >= len(ordered):
        raise DataError(f"{path} has class {largest}, but there are only {len(ordered)} synsets")
    return {PurePosixPath(name).name: ordered[int(number)] for name, number in rows}


def _read_synsets(path: Path) -> list[str]:
    for name in SYNSET_LISTS:
        beside = path.with_name(name)
        if beside.exists():
            return [line.split()[0] for line in beside.read_text().splitlines() if line.strip()]
    raise DataError(
        f"{path} has class numbers; which synsets they are is read from one of "
        f"{', '.join(SYNSET_LISTS)} beside it, or from ILSVRC2012_img_train.tar beside the images"
    )


def _devkit(truth: Sequence[str], meta: bytes) -> list[str]:
    """Synsets of the ILSVRC2012_IDs in `truth`."""
    from scipy.io import loadmat

    synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
    by_id = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    return [by_id[int(number)] for number in truth]


def _unpack(kit: tarfile.TarFile, path: Path, name: str) -> bytes:
    for member in kit:
        if PurePosixPath(member.name).name == name and (file := kit.extractfile(member)):
            return file.read()
    raise DataError(f"{path} has no {name}: is it the devkit of tasks 1 and 2?")
