"""Which files of a WebDataset shard are a sample, and what is a label."""

import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from webdataset.tariterators import base_plus_ext

from convnextv2.data.collection import DataError
from convnextv2.data.selection import Selection, select
from convnextv2.data.sources import open_source
from convnextv2.data.sources.webdataset.samples import split_name
from tests.convnextv2.data.fixtures.archives import everything, jpeg, listed, put, tar

Labels = dict[str, int]


def put_shard(path: Path, files: Mapping[str, str]) -> Path:
    """Files without a text are images."""
    return put(path, tar({name: text.encode() or jpeg() for name, text in files.items()}))


def read(path: Path) -> tuple[Labels, dict[str, int]]:
    """Labels by file name, and what is passed over."""
    source = open_source(path, "train")
    kinds: Counter[str] = Counter()
    for part in range(len(source.parts)):
        source.members(part, kinds)
    labels = {stored.name.partition(".tar:")[2]: label for stored, label in everything(source)}
    return labels, dict(kinds)


@pytest.mark.parametrize(
    "name", ["0001.jpg", "a/b.c/0001.image.JPG", "0001.seg.png", "a.b/IMG_2.7.jpg", "./x/1.cls"]
)
def test_a_name_is_split_as_the_library_splits_it(name: str) -> None:
    key, field = base_plus_ext(name)
    assert split_name(name) == (key, field.lower())


def key(number: int, dotted: bool = True) -> str:
    return f"IMG_2.{number}" if dotted else f"IMG{number}"


SAMPLES: list[tuple[str, dict[str, str], Labels, dict[str, int]]] = [
    (
        "every key has dots",
        {f"{key(n)}.{end}": text for n in range(4) for end, text in
         (("jpg", ""), ("cls", str(n % 2)))},
        {f"{key(n)}.jpg": n % 2 for n in range(4)}, {},
    ),
    (
        "some keys have dots",
        {f"{key(n, n > 1)}.{end}": text for n in range(4) for end, text in
         (("jpg", ""), ("cls", str(n % 2)))},
        {f"{key(n, n > 1)}.jpg": n % 2 for n in range(4)}, {},
    ),
    (
        "a key is the beginning of another",
        {"photo.jpg": "", "photo.cls": "1", "photo.1.jpg": "", "photo.1.cls": "0"},
        {"photo.jpg": 1, "photo.1.jpg": 0}, {},
    ),
    (
        "keys with dots, one without its label, one without its image",
        {"v1.0.jpg": "", "v1.0.cls": "1", "v1.1.jpg": "", "v1.2.cls": "0", "v1.2.npz": "x"},
        {"v1.0.jpg": 1, "v1.1.jpg": -1}, {"samples without an image": 1, ".npz": 1},
    ),
    (
        "keys with dots, unlabelled",
        {"v1.0.jpg": "", "v1.1.jpg": ""}, {"v1.0.jpg": -1, "v1.1.jpg": -1}, {},
    ),
    (
        "fields with names",
        {"01.image.jpg": "", "01.label.cls": "1", "02.image.jpg": "", "02.label.cls": "0"},
        {"01.image.jpg": 1, "02.image.jpg": 0}, {},
    ),
    (
        "several images of a sample",
        {"01.jpg": "", "01.seg.png": "", "01.cls": "1", "02.depth.png": "", "02.image.png": "",
         "02.label.cls": "0"},
        {"01.jpg": 1, "02.image.png": 0}, {"further images of a sample": 2},
    ),
    (
        "other formats",
        {f"{n}.{end}": text for n, suffix in enumerate(("tif", "BMP", "jfif", "gif"))
         for end, text in ((suffix, ""), ("cls", str(n)))},
        {"0.tif": 0, "1.BMP": 1, "2.jfif": 2, "3.gif": 3}, {},
    ),
    (
        "labels stand apart, and before the images",
        {**{f"{n}.cls": str(n) for n in range(4)}, **{f"{n}.jpg": "" for n in (3, 1, 0, 2)}},
        {"3.jpg": 3, "1.jpg": 1, "0.jpg": 0, "2.jpg": 2}, {},
    ),
    (
        "images without a label, files without an image",
        {"0.jpg": "", "0.npz": "x", "1.json": "{}", "1.txt": "lost", "readme": "x",
         "__MACOSX/._0.jpg": "", ".DS_Store": "x"},
        {"0.jpg": -1},
        {".npz": 1, "samples without an image": 1, "without a suffix": 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "labels", "kinds"), [case[1:] for case in SAMPLES], ids=[case[0] for case in SAMPLES]
)
def test_samples_are_whole_and_none_is_lost_unsaid(
    tmp_path: Path, files: dict[str, str], labels: Labels, kinds: dict[str, int]
) -> None:
    path = put_shard(tmp_path / "train-0000.tar", files)
    found, passed_over = read(tmp_path)
    assert (list(found.items()), passed_over) == (list(labels.items()), kinds)
    # They are read from front to back, whatever the order of the files of a sample.
    with tarfile.open(path) as archive:
        assert [name for name in archive.getnames() if name in labels] == list(labels)


JSON_LABELS: list[tuple[object, int]] = [
    ({"label": 1}, 1),
    ({"label": "dog"}, 1),
    ({"label": {"index": 1, "name": "whatever"}}, 1),
    ({"label": {"name": "dog"}}, 1),
    ({"class_id": 1, "class_name": "cat"}, 1),
    ({"caption": "a dog", "width": 5}, -1),
]


@pytest.mark.parametrize(("told", "label"), JSON_LABELS)
def test_labels_in_json(tmp_path: Path, told: object, label: int) -> None:
    put(tmp_path / "classnames.txt", "cat\ndog")
    put_shard(tmp_path / "0.tar", {"a.jpg": "", "a.json": json.dumps(told)})
    assert read(tmp_path) == ({"a.jpg": label}, {})


def test_a_label_is_looked_for_in_all_files_of_a_sample(tmp_path: Path) -> None:
    metadata = json.dumps({"width": 5})
    put_shard(tmp_path / "0.tar", {"a.jpg": "", "a.json": metadata, "a.txt": "1"})
    assert read(tmp_path) == ({"a.jpg": 1}, {})


@pytest.mark.parametrize("texts", [["0", "1", " 2\n"], ["cat", "dog", "0"]])
def test_texts_are_classes_where_all_are_numbers_or_known_names(
    tmp_path: Path, texts: list[str]
) -> None:
    if "cat" in texts:
        put(tmp_path / "classnames.txt", "cat\ndog\neel")
    files = {f"{n}.{end}": text for n, told in enumerate(texts)
             for end, text in (("jpg", ""), ("txt", told))}  # fmt: skip
    put_shard(tmp_path / "x-0.tar", files)
    put_shard(tmp_path / "x-1.tar", {"9.jpg": "", "9.txt": texts[0]})
    assert list(read(tmp_path)[0].values()) == [0, 1, 0 if "cat" in texts else 2, 0]
    assert open_source(tmp_path, "train").notes == ()
    put_shard(tmp_path / "x-1.tar", {"9.jpg": "", "9.txt": "a caption"})
    with pytest.raises(DataError, match=r"x-1\.tar:9\.txt has no label: a number, or a name in"):
        read(tmp_path)


def test_captions_are_no_classes_though_some_are_numbers(tmp_path: Path) -> None:
    put_shard(tmp_path / "0.tar", {"0.jpg": "", "0.txt": "7", "1.jpg": "", "1.txt": "Route 66"})
    assert read(tmp_path) == ({"0.jpg": -1, "1.jpg": -1}, {".txt": 2})
    (note,) = open_source(tmp_path, "train").notes
    assert ".txt files are taken for captions, such as 'Route 66', and not read" in note


@pytest.mark.parametrize("label", ["-2", "1.5", "[1, 0]"])
def test_a_label_that_is_none_is_named_with_its_file(tmp_path: Path, label: str) -> None:
    put_shard(tmp_path / "0.tar", {"a.jpg": "", "a.cls": label})
    with pytest.raises(DataError, match=r"0\.tar:a\.cls has (no label|label -2)"):
        read(tmp_path)


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "0.tar", b"")
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.jpg"))
            archive.addfile(tarfile.TarInfo("a.cls"))
    with pytest.raises(DataError, match=r"0\.tar holds a\.jpg twice"):
        listed(open_source(tmp_path, "train"))


def put_img2dataset(root: Path) -> None:
    """Its output: a caption and metadata of each image, of failed downloads these alone."""
    for number in range(2):
        metadata = json.dumps({"caption": "a caption", "status": "success", "url": "x"})
        files = {"00.jpg": "", "00.txt": "a caption", "00.json": metadata, "01.json": metadata}
        put_shard(root / f"0000{number}.tar", files)
        put(root / f"0000{number}.parquet", b"a table of URLs")
        put(root / f"0000{number}_stats.json", "{}")


def test_the_output_of_img2dataset_is_read_as_tars_and_that_is_said(tmp_path: Path) -> None:
    put_img2dataset(tmp_path)
    source = open_source(tmp_path, "train")
    assert source.notes[0] == (
        f"{tmp_path}: 00000.parquet and the like are about the tars beside them, and not read"
    )
    assert "captions, such as 'a caption'" in source.notes[1]
    assert select(listed(source), source.classes, Selection())[1] == ()
    assert read(tmp_path)[1] == {"samples without an image": 2, ".txt": 2}
    put(tmp_path / "00007.parquet", b"of no tar")
    with pytest.raises(DataError, match=r"holds 00000\.tar and 00000\.parquet: which of them"):
        open_source(tmp_path, "train")
