"""Tiny-ImageNet's validation images as distributed: one folder, and a file of their classes.

Its training images are class folders (`train/n01443537/images/*.JPEG`) and need no more.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnextv2.data.collection import DataError, Members, Stored
from convnextv2.data.sources.folders.class_folders import image_names
from convnextv2.data.sources.listing import check_unchanged, hash_files, key_name, list_members

ANNOTATIONS, IMAGES = "val_annotations.txt", "images"
CLASS_LIST = "wnids.txt"


@dataclass(frozen=True)
class TinyImageNetVal:
    """The folder `root` with `images/` and `val_annotations.txt`; offsets number them by name."""

    root: Path
    classes: tuple[str, ...]
    has_splits: bool = False
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.root / IMAGES)]

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        kinds: Counter[str] = Counter()
        synsets = read_annotations(self.root)
        numbers = {name: number for number, name in enumerate(self.classes)}
        names = image_names(self.root / IMAGES, kinds)
        if missing := [name for name in names if name not in synsets]:
            raise DataError(
                f"{self.root / ANNOTATIONS} lacks {len(missing):,} images of {IMAGES}/, such as "
                f"{missing[0]}"
            )
        if gone := len(synsets.keys() - set(names)):
            kinds[f"lines of {ANNOTATIONS} without an image"] = gone
        if passed_over is not None:
            passed_over.update(kinds)
        return list_members(
            (
                key_name(synsets[name], name),
                offset,
                (self.root / IMAGES / name).stat().st_size,
                numbers[synsets[name]],
            )
            for offset, name in enumerate(names)
        )

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        synsets, names = read_annotations(self.root), image_names(self.root / IMAGES, Counter())
        for member in members:
            offset = int(member["offset"])
            if offset >= len(names):
                raise DataError(f"{self.parts[part]} has lost images since it was listed")
            path = self.root / IMAGES / names[offset]
            key = key_name(synsets.get(names[offset], ""), names[offset])
            check_unchanged(str(path), key, int(member["key"]))
            yield Stored(str(path), path.read_bytes())

    def fingerprint(self) -> str:
        names = (f"{IMAGES}/{name}" for name in image_names(self.root / IMAGES, Counter()))
        annotations = (self.root / ANNOTATIONS).read_bytes().hex()
        return hash_files(self.root, names, self.classes, annotations)


def open_tiny_val(root: Path, has_splits: bool) -> TinyImageNetVal:
    """Open `val/` of Tiny-ImageNet; its classes are those of `wnids.txt` above it, if it is there.

    Raises:
        DataError: When the annotations are not understood, or have classes that the list lacks.
    """
    told = set(read_annotations(root).values())
    listed = root.parent / CLASS_LIST
    classes = set(listed.read_text().split()) if listed.exists() else told
    if strange := told - classes:
        raise DataError(f"{root / ANNOTATIONS} has class {min(strange)}, which {listed} lacks")
    return TinyImageNetVal(root, tuple(sorted(classes)), has_splits)


def read_annotations(root: Path) -> dict[str, str]:
    """Class of each image by its file name: `val_0.JPEG <tab> n03444034 <tab> x0 y0 x1 y1`."""
    path = root / ANNOTATIONS
    rows = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise DataError(f"{path} is not understood: a line is an image, a tab, and its class")
    return {row[0]: row[1].strip() for row in rows}
