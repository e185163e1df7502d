"""Files that are passed over in a collection, counted by kind, so that the user is told."""

from collections import Counter
from collections.abc import Iterable, Iterator
from posixpath import splitext

from convnextv2.data.collection import DataError
from convnextv2.data.sources.leftovers import is_leftover
from convnextv2.data.sources.listing import IMAGE_SUFFIXES, is_image, printable
from convnextv2.data.sources.tars.archive import Entry

_KINDS_TOLD = 8


def kind_of(path: str) -> str:
    """What a file that is passed over is counted as: its suffix."""
    return printable(splitext(path)[1].lower()) or "without a suffix"


def images_among(entries: Iterable[Entry], passed_over: Counter[str]) -> Iterator[Entry]:
    """The images among the files of a tar; the others are counted by their suffix."""
    for entry in entries:
        if is_image(entry.name):
            yield entry
        elif not is_leftover(entry.name):
            passed_over[kind_of(entry.name)] += 1


def describe_kinds(passed_over: Counter[str]) -> str:
    """Counted kinds as text, the most frequent first: `.txt (12), .avif (3)`."""
    most = passed_over.most_common(_KINDS_TOLD)
    told = ", ".join(f"{kind} ({count:,})" for kind, count in most)
    more = len(passed_over) - len(most)
    return f"{told} and {more:,} kinds more" if more else told


def class_without_images(where: str, passed_over: Counter[str]) -> DataError:
    """The error for a class without images, for which the head would have a useless output.

    `passed_over` are the kinds of the files that are there.
    """
    holds = f"only {describe_kinds(passed_over)}" if passed_over else "nothing"
    return DataError(
        f"{where} would be a class without images: it holds {holds}. Images are files named "
        f"{' '.join(sorted(IMAGE_SUFFIXES))}: convert them, or move it out of the collection"
    )
