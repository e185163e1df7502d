"""Classes matched by name, because every collection numbers its classes in its own way."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.collection import UNLABELLED, DataError

_NAMED = 10


def match_classes(
    classes: Sequence[str], known: Sequence[str], *, of: str, among: str
) -> NDArray[np.int32]:
    """The number of each of `classes` among `known`, followed by -1 for unlabelled images.

    So `match_classes(...)[labels]` renumbers labels (N,) of `classes`; -1 stays -1.
    `of` and `among` say whose classes these are, for the message: "the val images of DIR".

    Raises:
        DataError: When a class is not among `known`, or is there twice; it shows both lists.
    """
    for names, owner in ((classes, of), (known, among)):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"class {twice} is named twice among those of {owner}")
    numbers = {name: number for number, name in enumerate(known)}
    if strange := [name for name in classes if name not in numbers]:
        raise DataError(
            f"{len(strange):,} of the {len(classes):,} classes of {of} are not among the "
            f"{len(known):,} of {among}: {named(strange)}\n"
            f"  {of}: {named(classes)}\n"
            f"  {among}: {named(known)}"
        )
    return np.array([*(numbers[name] for name in classes), UNLABELLED], np.int32)


def named(classes: Sequence[str]) -> str:
    """The names of classes for a message; of many only the first."""
    if not classes:
        return "none"
    more = len(classes) - _NAMED
    return ", ".join(classes[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
