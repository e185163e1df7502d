"""WebDataset shards and Hugging Face parquet files."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convnextv2.data.collection import DataError
from convnextv2.data.selection import Selection, select
from convnextv2.data.sources import open_source
from convnextv2.data.sources.parquet import ParquetFiles
from convnextv2.data.sources.webdataset import WebDataset
from tests.convnextv2.data.fixtures.archives import everything, jpeg, listed, put, tar

# WebDataset


def shard(*samples: tuple[str, str, str]) -> bytes:
    """Of (key, ending of the label file, label); endings of images differ."""
    files = {}
    for number, (key, end, label) in enumerate(samples):
        if end:
            files[f"{key}.{end}"] = label.encode()
        files[f"{key}.{('jpg', 'JPEG', 'png', 'webp')[number % 4]}"] = jpeg(number)
        files[f"{key}.txt"] = b"a caption"
    return tar(files)


def labels_of(root: Path) -> list[int]:
    return [label for _, label in everything(open_source(root, "train"))]


def test_labels_stand_beside_the_images(tmp_path: Path) -> None:
    put(
        tmp_path / "part-000.tar",
        shard(
            ("000", "cls", "2"),
            ("001", "json", json.dumps({"label": 1, "width": 5})),
            ("folder/002", "cls", " 0\n"),
            ("003", "json", json.dumps({"width": 5})),
            ("004", "", ""),
        ),
    )
    source = open_source(tmp_path, "train")
    assert isinstance(source, WebDataset)
    assert [(stored.name, label) for stored, label in everything(source)] == [
        (f"{tmp_path}/part-000.tar:000.jpg", 2),
        (f"{tmp_path}/part-000.tar:001.JPEG", 1),
        (f"{tmp_path}/part-000.tar:folder/002.png", 0),
        (f"{tmp_path}/part-000.tar:003.webp", -1),
        (f"{tmp_path}/part-000.tar:004.jpg", -1),
    ]
    assert [s.content for s, _ in everything(source)] == [jpeg(number) for number in range(5)]
    assert pickle.loads(pickle.dumps(source)) == source


def test_classes_without_names_are_numbers_as_far_as_there_are_labels(tmp_path: Path) -> None:
    put(tmp_path / "0.tar", shard(("a", "cls", "2"), ("b", "cls", "0")))
    source = open_source(tmp_path, "train")
    assert source.classes == ()
    assert select(listed(source), source.classes, Selection())[1] == ("0", "1", "2")


def test_class_names_are_read_and_may_be_the_labels(tmp_path: Path) -> None:
    put(tmp_path / "classnames.txt", "cat\ndog \n\n")
    put(tmp_path / "0.tar", shard(("a", "cls", "dog"), ("b", "json", '{"label": "cat"}')))
    put(tmp_path / "1.tar", shard(("a", "cls", "1"), ("b", "cls", "0")))
    source = open_source(tmp_path, "train")
    assert source.classes == ("cat", "dog")
    assert labels_of(tmp_path) == [1, 0, 1, 0]
    # The same keys in two shards are two images.
    assert len(np.unique(np.concatenate(listed(source))["key"])) == 4


@pytest.mark.parametrize(
    ("end", "label", "message"),
    [
        ("cls", "eel", r"0\.tar:a\.cls has no label: a number, or a name in classnames\.txt"),
        ("cls", "2", r"a\.cls has label 2, but classnames\.txt names only 2 classes"),
        ("json", "[1]", r"a\.json has no label"),
        ("json", '{"label": null}', r"a\.json has no label"),
        ("json", "{", r"a\.json has no label"),
        ("cls", "", r"a\.cls has no label"),
    ],
)
def test_a_label_that_is_none_is_named(tmp_path: Path, end: str, label: str, message: str) -> None:
    put(tmp_path / "classnames.txt", "cat\ndog")
    put(tmp_path / "0.tar", shard(("a", end, label)))
    with pytest.raises(DataError, match=message):
        listed(open_source(tmp_path, "train"))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("train_0.tar", "val_0.tar"),
        ("training.tar", "x-test.tar"),
    ],
)
def test_splits_are_told_by_the_names_of_the_shards(tmp_path: Path, train: str, val: str) -> None:
    put(tmp_path / train, shard(("a", "cls", "0")))
    put(tmp_path / val, shard(("b", "cls", "1")))
    assert open_source(tmp_path, "train").parts == [f"{tmp_path}/{train}"]
    assert open_source(tmp_path, "val").parts == [f"{tmp_path}/{val}"]
    assert open_source(tmp_path, "val").has_splits
    (tmp_path / val).unlink()
    with pytest.raises(
        DataError, match=rf"such as {train}, but none for 'val'; .* --val-fraction \(data"
    ):
        open_source(tmp_path, "val")


def test_shards_without_a_split_in_their_names_are_all_listed(tmp_path: Path) -> None:
    for number in range(3):
        # Unlabelled: only their numbers tell that these are no classes.
        put(tmp_path / f"laion-{number:05}.tar", shard((f"{number}", "", "")))
    for source in (open_source(tmp_path, "train"), open_source(tmp_path, "val")):
        assert isinstance(source, WebDataset)
        assert len(source.parts) == 3
        assert not source.has_splits
    assert labels_of(tmp_path) == [-1, -1, -1]
    assert len(open_source(tmp_path / "laion-00001.tar", "train").parts) == 1


# Parquet


def put_table(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None] | None = None,
    names: Sequence[str] = (),
    binary: bool = False,
    rows: int = 3,
) -> Path:
    """As the library `datasets` writes them, in row groups of `rows`."""
    values: list[Any] = list(images) if binary else [{"bytes": i, "path": "x.jpg"} for i in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(values, pa.large_binary() if binary else struct)}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = {"names": list(names), "_type": "ClassLabel"} if names else {}
    table = pa.table(columns)
    about = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), path, row_group_size=rows)
    return path


IMAGES = [jpeg(seed) for seed in range(8)]


@pytest.mark.parametrize("binary", [False, True])
def test_rows_are_images_with_their_labels(tmp_path: Path, binary: bool) -> None:
    labels = [0, 1, 2, 2, 1, 0, None, -1]
    put_table(
        tmp_path / "data/train-00000-of-00002.parquet", IMAGES, labels, ("tench", "eel", "ray"),
        binary,
    )  # fmt: skip
    put_table(
        tmp_path / "data/train-00001-of-00002.parquet", IMAGES[:1], [1], ("tench", "eel", "ray"),
        binary,
    )  # fmt: skip
    put_table(tmp_path / "data/validation-00000-of-00001.parquet", IMAGES[:2], [1, 1], ("tench",))
    put_table(tmp_path / "data/test-00000-of-00001.parquet", IMAGES[:1], [-1], ("tench",))
    put(tmp_path / "README.md", "a data set")

    train, val = open_source(tmp_path, "train"), open_source(tmp_path, "val")

    assert isinstance(train, ParquetFiles)
    assert train.has_splits
    assert train.classes == ("tench", "eel", "ray")
    assert train.parts == [f"{tmp_path}/data/train-0000{n}-of-00002.parquet" for n in range(2)]
    assert val.parts == [f"{tmp_path}/data/validation-00000-of-00001.parquet"]
    found = everything(train)
    assert [label for _, label in found] == [0, 1, 2, 2, 1, 0, -1, -1, 1]
    assert [stored.content for stored, _ in found] == [*IMAGES, IMAGES[0]]
    assert found[7][0].name == f"{tmp_path}/data/train-00000-of-00002.parquet:7"
    assert len(np.unique(np.concatenate(listed(train))["key"])) == 9


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_any_rows_can_be_read(tmp_path: Path, rows: int) -> None:
    images = [b"%d" % number for number in range(200)]
    source = open_source(put_table(tmp_path / "x.parquet", images, rows=rows), "train")
    members = source.members(0)
    for chosen in ([0], [199], [2, 3, 63, 64, 65, 128], range(0, 200, 7), []):
        read = list(source.read(0, members[list(chosen)]))
        assert [stored.content for stored in read] == [images[row] for row in chosen]
        assert [stored.name for stored in read] == [f"{tmp_path}/x.parquet:{n}" for n in chosen]
    assert set(members["label"]) == {-1}
    assert source.classes == ()


def test_sizes_are_about_those_of_the_images(tmp_path: Path) -> None:
    images = [np.random.default_rng(n).bytes(10_000 + n) for n in range(100)]
    put_table(tmp_path / "x.parquet", images, list(range(100)), rows=50)
    sizes = open_source(tmp_path, "train").members(0)["size"]
    assert 10_000 <= sizes.min() <= sizes.max() < 12_000


def test_an_image_that_is_elsewhere_is_empty(tmp_path: Path) -> None:
    put_table(tmp_path / "x.parquet", [None, b"1"])
    assert [stored.content for stored, _ in everything(open_source(tmp_path, "train"))] == [
        b"",
        b"1",
    ]


def test_rows_that_are_gone_are_noticed(tmp_path: Path) -> None:
    path = put_table(tmp_path / "x.parquet", IMAGES)
    source = open_source(path, "train")
    members = source.members(0)
    put_table(path, IMAGES[:5])
    with pytest.raises(DataError, match=r"x\.parquet has lost rows since it was listed: it has 5"):
        list(source.read(0, members))


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    put(tmp_path / "d.parquet", "PAR1 no table")
    with pytest.raises(DataError, match=r"d\.parquet is no readable parquet file"):
        open_source(tmp_path / "d.parquet", "train")
