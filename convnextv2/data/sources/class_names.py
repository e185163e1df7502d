"""Notes for the user about names that become classes by mistake or in an odd order."""

from collections.abc import Sequence
from pathlib import Path

_SELDOM_CLASSES = {
    "image", "images", "img", "imgs", "jpegimages", "photos", "pictures", "mask", "masks",
    "annotation", "annotations", "label", "labels", "bbox", "bboxes", "boxes", "segmentation",
    "segmentations", "segmentationclass", "segmentationobject", "imagesets", "metadata",
    "thumbnails",
}  # fmt: skip


def odd_classes(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """What the user should know of the names of classes, as notes."""
    notes = []
    if parts := [name for name in classes if name.lower() in _SELDOM_CLASSES]:
        notes.append(
            f"{root}: {', '.join(parts)} {'is' if len(parts) == 1 else 'are'} read as "
            f"{'a class' if len(parts) == 1 else 'classes'}, as every name of a folder is; if "
            "that is not meant, give a folder that holds class folders only"
        )
    if all(map(str.isdecimal, classes)):
        in_order = sorted(classes, key=int)
        moved = [label for label, name in enumerate(classes) if name != in_order[label]]
        if moved:
            notes.append(
                f"{root}: classes are numbers, in the order of text as in torchvision: class "
                f"{classes[moved[0]]} has label {moved[0]}"
            )
    return tuple(notes)
