"""Samples of a WebDataset shard: which files belong together, and which of them is the image.

In this format, a file's key is everything before the first dot of its base name, and its field is
what follows: `0001.jpg` and `0001.cls`, or `0001.image.jpg` and `0001.label.cls`, are one sample.
Keys that contain dots (`IMG_2.7.jpg`, `IMG_2.8.jpg`) break that rule, but are common. They are
recognised by several images with the same text before the first dot; see `_split_key`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from convnextv2.data.collection import DataError
from convnextv2.data.sources.leftovers import is_leftover
from convnextv2.data.sources.listing import IMAGE_SUFFIXES
from convnextv2.data.sources.passed_over import kind_of
from convnextv2.data.sources.tars.archive import Entry

_FIRST_ENDS = ("jpg", "jpeg", "png", "webp")
IMAGE_ENDS = (*_FIRST_ENDS, *sorted({suffix[1:] for suffix in IMAGE_SUFFIXES} - {*_FIRST_ENDS}))
"""Endings of image files, in order of preference if a sample has several images."""
LABEL_ENDS = ("cls", "class", "json", "txt")
"""Endings of files that may hold a label, in the order in which they are read."""
_IMAGE_FIELDS = ("", "image", "img")

Files = dict[str, Entry]


class Sample(NamedTuple):
    """An image, and the files that may hold its label; the first one that holds a label is used."""

    image: Entry
    labels: tuple[Entry, ...]


def samples_of(shard: str, entries: Iterable[Entry], passed_over: Counter[str]) -> Iterator[Sample]:
    """Group the files of a shard into samples, wherever in the shard they lie.

    Files that belong to no sample are counted by kind in `passed_over`. This takes about 430 bytes
    of memory for each file of the shard.

    Raises:
        DataError: When the shard holds a file twice.
    """
    keys: defaultdict[str, Files] = defaultdict(dict)
    for entry in entries:
        if is_leftover(entry.name):
            continue
        key, field = split_name(entry.name)
        if field in keys[key]:
            raise DataError(f"{shard} holds {entry.name} twice: which of them is meant?")
        keys[key][field] = entry
    for files in keys.values():
        for sample in _split_key(files):
            yield from _sample(sample, passed_over)


def split_name(name: str) -> tuple[str, str]:
    """Key and field (in lower case): what comes before and after the base name's first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return folder + slash + key, field.lower()


def has_label_beside(names: Iterable[str]) -> bool:
    """Whether some of these files are labels, or texts with the same key as an image."""
    ends: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        key, field = split_name(name)
        ends[key].add(ending(field))
    # A text without an image may be a readme.
    return any(
        those.intersection(LABEL_ENDS[:-1]) or ("txt" in those and those.intersection(IMAGE_ENDS))
        for those in ends.values()
    )


def ending(field: str) -> str:
    """The last part of a field, which tells the kind of file: `jpg` for `image.jpg`."""
    return field.rpartition(".")[2]


def _split_key(files: Files) -> list[Files]:
    """Split the files of one key into samples: a single one, unless keys contain dots.

    Keys contain dots if several images differ in what stands before their last dot. In two cases
    such images are one sample all the same: a label belongs to all of them (`left.jpg`,
    `right.jpg`, `cls`), or one has the plain key and others have no label of their own (`jpg`,
    `cls`, `seg.png`).
    """
    stems: defaultdict[str, Files] = defaultdict(dict)
    for field, entry in files.items():
        stems[field.rpartition(".")[0]][field] = entry
    with_image = {stem for stem, those in stems.items() if _ending_in(those, IMAGE_ENDS)}
    if len(with_image) < 2:
        return [files]
    with_label = {stem for stem, those in stems.items() if _ending_in(those, LABEL_ENDS)}
    labelled = with_image & with_label
    is_shared = bool(with_label) and not labelled
    if is_shared or ("" in with_image and not with_image <= labelled | {""}):
        return [files]
    return list(stems.values())


def _sample(files: Files, passed_over: Counter[str]) -> Iterator[Sample]:
    images, labels = _ending_in(files, IMAGE_ENDS), _ending_in(files, LABEL_ENDS)
    others = files.keys() - {*images, *labels}
    passed_over.update(kind_of(files[field].name) for field in others)
    if not images:
        if labels:
            passed_over["samples without an image"] += 1
        return
    if len(images) > 1:
        passed_over["further images of a sample"] += len(images) - 1
    image = min(images, key=_rank)
    stem = image.rpartition(".")[0]
    labels.sort(key=lambda name: (LABEL_ENDS.index(ending(name)), name.rpartition(".")[0] != stem))
    yield Sample(files[image], tuple(files[field] for field in labels))


def _rank(field: str) -> tuple[int, int, str]:
    stem, _, end = field.rpartition(".")
    named = _IMAGE_FIELDS.index(stem) if stem in _IMAGE_FIELDS else len(_IMAGE_FIELDS)
    return named, IMAGE_ENDS.index(end), field


def _ending_in(files: Files, ends: tuple[str, ...]) -> list[str]:
    return [field for field in files if ending(field) in ends]
