"""Telling layouts apart; class folders, and idx files."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from convnextv2.data.collection import DataError, Split
from convnextv2.data.selection import Selection, open_selected, select
from convnextv2.data.sources import open_source
from convnextv2.data.sources.folders import FolderSource
from convnextv2.data.sources.idx import FASHION_CLASSES
from tests.convnextv2.data.fixtures.archives import everything, jpeg, listed, put, tar

Bytes = npt.NDArray[np.uint8]


def put_all(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        put(root / name, jpeg(seed))
    return root


def files_of(root: Path, split: Split) -> list[str]:
    """Files of a split, hold-out included."""
    source, selection = open_selected(root, Selection(split))
    chosen, _ = select(listed(source), source.classes, selection)
    return [
        str(Path(stored.name).relative_to(root))
        for part, members in enumerate(chosen)
        for stored in source.read(part, members)
    ]


# Class folders


def test_class_folders_are_listed_by_name_at_any_depth(tmp_path: Path) -> None:
    names = ("cat/9.webp", "dog/2.JPEG", "dog/far/below/1.JPG")
    put_all(tmp_path / "train", *names)
    put_all(tmp_path / "train", "cat/note.md", "dog/._2.JPEG", "dog/.trash/3.jpg", ".git/x.jpg")

    source = open_source(tmp_path, "train")

    assert source.classes == ("cat", "dog")
    assert source.parts == [f"{tmp_path}/train/{name}" for name in source.classes]
    assert everything(source) == [
        ((f"{tmp_path}/train/{name}", jpeg(seed)), label)
        for seed, (name, label) in enumerate(zip(names, (0, 1, 1), strict=True))
    ]
    assert source.members(1)["size"].tolist() == [len(jpeg(1)), len(jpeg(2))]
    assert pickle.loads(pickle.dumps(source)) == source


def test_images_beside_each_other_are_unlabelled(tmp_path: Path) -> None:
    put_all(tmp_path, "b.png", "a.jpg", "notes.txt")
    source = open_source(tmp_path, "train")
    assert source.classes == ()
    assert not source.has_splits
    assert [(stored.name, label) for stored, label in everything(source)] == [
        (f"{tmp_path}/a.jpg", -1),
        (f"{tmp_path}/b.png", -1),
    ]


def test_names_may_be_no_text_and_folders_may_be_links(tmp_path: Path) -> None:
    odd = b"\xff\xe9.jpg".decode(errors="surrogateescape")
    put(tmp_path / "elsewhere" / odd, jpeg())
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cat").symlink_to(tmp_path / "elsewhere")
    found = everything(open_source(tmp_path / "data", "train"))
    assert [stored for stored, _ in found] == [(f"{tmp_path}/data/cat/\\xff\\xe9.jpg", jpeg())]


@pytest.mark.parametrize("train", ["train", "training"])
@pytest.mark.parametrize("val", ["val", "validation", "valid", "test"])
def test_split_folders_are_recognised(tmp_path: Path, train: str, val: str) -> None:
    put_all(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{val}/a/3.png", f"{val}/b/4.png")
    assert files_of(tmp_path, "train") == [f"{train}/a/1.png", f"{train}/b/2.png"]
    assert files_of(tmp_path, "val") == [f"{val}/a/3.png", f"{val}/b/4.png"]


def put_empty(root: Path, count: int) -> Path:
    """Many files that nobody will decode."""
    for name in (f"{label}/{number}.jpg" for label in "ab" for number in range(count)):
        put(root / name, b"")
    return root


def test_held_out_images_are_a_tenth_and_in_no_other_split(tmp_path: Path) -> None:
    root = put_empty(tmp_path, 200)
    train, val = files_of(root, "train"), files_of(root, "val")
    assert sorted(train + val) == sorted(f"{c}/{n}.jpg" for c in "ab" for n in range(200))
    assert 20 <= len(val) <= 60
    # The same numbers in two classes are different images.
    assert {v[2:] for v in val if v[0] == "a"} != {v[2:] for v in val if v[0] == "b"}


def test_held_out_images_stay_so_when_others_come_and_wherever_the_folder_is(
    tmp_path: Path,
) -> None:
    before = files_of(put_empty(tmp_path / "here", 200), "val")
    after = files_of(put_empty(tmp_path / "there", 300), "val")
    assert set(before) < set(after)
    assert not set(after) & set(files_of(tmp_path / "here", "train"))


def test_the_hold_out_is_the_same_from_folders_and_from_tars(tmp_path: Path) -> None:
    files = {c: {f"{n}.jpg": b"%d" % n for n in range(200)} for c in ("cat", "dog")}
    for name, images in files.items():
        put(tmp_path / f"tars/{name}.tar", tar({f"./{name}/{n}": c for n, c in images.items()}))
        for file, content in images.items():
            put(tmp_path / "folders" / name / file, content)
    put(tmp_path / "all.tar", tar({f"{name}.tar": tar(files[name]) for name in files}))

    held = []
    for root in ("folders", "tars", "all.tar"):
        source, selection = open_selected(tmp_path / root, Selection("val"))
        chosen, classes = select(listed(source), source.classes, selection)
        assert classes == ("cat", "dog")
        held.append(
            sorted(
                (label, stored.content)
                for part, members in enumerate(chosen)
                for stored, label in zip(
                    source.read(part, members), members["label"].tolist(), strict=True
                )
            )
        )
    assert 20 <= len(held[0]) <= 60
    assert held[1] == held[0]
    assert held[2] == held[0]


def test_a_folder_that_changes_is_noticed(tmp_path: Path) -> None:
    source = open_source(put_all(tmp_path, "cat/2.jpg", "cat/3.jpg"), "train")
    members, before = source.members(0), source.fingerprint()
    put(tmp_path / "cat/1.jpg", b"")
    assert source.fingerprint() != before
    with pytest.raises(DataError, match=r"cat/1\.jpg was not there when"):
        list(source.read(0, members))
    (tmp_path / "cat/1.jpg").unlink()
    assert source.fingerprint() == before
    put(tmp_path / "cat/2.jpg", b"!")
    assert source.fingerprint() != before
    (tmp_path / "cat/3.jpg").unlink()
    with pytest.raises(DataError, match=r"cat has lost images since it was listed"):
        list(source.read(0, members))
    (tmp_path / "cat/2.jpg").unlink()
    (tmp_path / "cat").rmdir()
    with pytest.raises(DataError, match=r"cat is gone since the source was opened"):
        source.members(0)


# What lies there

TABLE = pa.BufferOutputStream()
pq.write_table(pa.table({"image": [b"1"]}), TABLE)
PARQUET = TABLE.getvalue().to_pybytes()
CLASS_TAR = tar({"1.jpg": b""})
TAR_OF_TARS = tar({"n01440764.tar": CLASS_TAR})


@pytest.mark.parametrize(
    ("files", "root", "message"),
    [
        ({}, "nowhere", r"nowhere does not exist"),
        ({}, "", r"is empty"),
        ({"1.jpg": b""}, "1.jpg", r"1\.jpg is a file; give a \.tar, a \.parquet, a list \(\.csv"),
        ({"x.tar.gz": b""}, "x.tar.gz", r"is compressed and cannot be read in place: make it a"),
        ({"a/note.md": b""}, "", r"no images under .*; there are \.md \(1\)\. Read are .*\.webp"),
        ({"val/a/1.png": b""}, "", r"has a folder val but none for 'train'; names for it are tr"),
        ({"a/1.jpg": b"", "b.jpg": b""}, "", r"class folders \(a, .*and images beside them \(b"),
        ({"a/1.jpg": b"", "b.tar": CLASS_TAR}, "", r"holds b\.tar and a/: which of them is meant"),
        ({"a.parquet": PARQUET, "b.tar": CLASS_TAR}, "", r"holds b\.tar and a\.parquet: which"),
        ({"n01440764.tar": CLASS_TAR, "n01440764.parquet": b""}, "", r"which of them is meant"),
        (
            {"n01440764.tar": CLASS_TAR, "fall11_whole.tar": TAR_OF_TARS}, "",
            r"holds 2 tars, such as n01440764\.tar and fall11_whole\.tar, that are no one",
        ),
        (
            {"a.tar": TAR_OF_TARS, "b.tar": TAR_OF_TARS}, "",
            r"holds 2 tars, such as a\.tar and b\.tar, that are no one collection",
        ),
        ({"ILSVRC2012_img_val.tar": CLASS_TAR}, "", r"has no ILSVRC2012_img_train\.tar, which is"),
        ({"a.tar": b"no tar"}, "", r"a\.tar is no tar: byte 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_what_would_work(
    tmp_path: Path, files: dict[str, bytes], root: str, message: str
) -> None:
    for name, content in files.items():
        put(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / root, "train")


@pytest.mark.parametrize(
    "files",
    [{"a/1.jpg": b""}, {"a.parquet": PARQUET}, {"a.tar": CLASS_TAR, "b.tar": CLASS_TAR}],
    ids=["folders", "parquet", "tars"],
)
def test_a_label_file_is_refused_where_it_means_nothing(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    for name, content in files.items():
        put(tmp_path / name, content)
    with pytest.raises(DataError, match=r"a label file \(labels\.txt\) is read for ILSVRC2012_img"):
        open_source(tmp_path, "train", labels=Path("labels.txt"))


def test_unpacked_splits_go_before_the_tars_they_came_from(tmp_path: Path) -> None:
    put(tmp_path / "ILSVRC2012_img_train.tar", TAR_OF_TARS)
    put(tmp_path / "ILSVRC2012_img_val.tar", tar({"ILSVRC2012_val_00000001.JPEG": b"1"}))
    put(tmp_path / "val.txt", "ILSVRC2012_val_00000001.JPEG 0\n")
    put_all(tmp_path, "train/n01440764/1.jpg")
    assert isinstance(open_source(tmp_path, "train"), FolderSource)
    val = open_source(tmp_path, "val")
    assert val.parts == [f"{tmp_path}/ILSVRC2012_img_val.tar"]
    assert val.classes == ("n01440764",)


# Idx files


def idx(values: Bytes) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6), np.uint8)
LABELS = np.array([2, 0, 1, 2, 0], np.uint8)


def put_idx(
    root: Path, images: bytes, labels: bytes = idx(LABELS), *, stem: str = "train", end: str = ""
) -> Path:
    root.mkdir(exist_ok=True)
    pack: Callable[[bytes], bytes] = gzip.compress if end else bytes
    (root / f"{stem}-images-idx3-ubyte{end}").write_bytes(pack(images))
    (root / f"{stem}-labels-idx1-ubyte{end}").write_bytes(pack(labels))
    return root


@pytest.mark.parametrize(("split", "stem"), [("train", "train"), ("val", "t10k")])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_are_read_plain_and_packed(
    tmp_path: Path, split: Split, stem: str, end: str
) -> None:
    source = open_source(put_idx(tmp_path / "data", idx(IMAGES), stem=stem, end=end), split)
    assert source.classes == ("0", "1", "2")
    assert source.has_splits
    found = everything(source)
    assert [label for _, label in found] == LABELS.tolist()
    for index, (stored, _) in enumerate(found):
        assert isinstance(stored.content, np.ndarray)
        assert (stored.content.shape, stored.content.dtype) == ((4, 6, 1), np.uint8)
        assert (stored.content == IMAGES[index][:, :, None]).all()
    assert found[3][0].name == f"{tmp_path}/data/{stem}-images-idx3-ubyte{end}:3"
    assert [s.name[-1] for s in source.read(0, source.members(0)[[1, 4]])] == ["1", "4"]


def test_fashion_mnist_has_its_names(tmp_path: Path) -> None:
    source = open_source(put_idx(tmp_path / "dataset-fashion-mnist", idx(IMAGES)), "train")
    assert source.classes == FASHION_CLASSES
    assert source.classes[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (b"", idx(LABELS), "images-idx3-ubyte is damaged"),
        (idx(IMAGES)[:9], idx(LABELS), "images-idx3-ubyte is damaged"),
        (idx(IMAGES)[:-1], idx(LABELS), r"cut short: 119 bytes for shape \(5, 4, 6\)"),
        (b"\x89PNG" + bytes(99), idx(LABELS), "no idx file of 3-dimensional bytes"),
        (idx(LABELS), idx(LABELS), "no idx file of 3-dimensional bytes"),
        (idx(IMAGES), idx(LABELS)[:-2], r"labels-idx1-ubyte is cut short"),
        (idx(IMAGES), idx(LABELS[:4]), "has 5 images but 4 labels"),
        (idx(IMAGES[:0]), idx(LABELS[:0]), "holds no images"),
    ],
)
def test_damaged_idx_files_are_named(
    tmp_path: Path, images: bytes, labels: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_source(put_idx(tmp_path, images, labels), "train")


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"no gzip" + data])
def test_damaged_gzip_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = put_idx(tmp_path, idx(IMAGES), end=".gz") / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"images-idx3-ubyte\.gz is damaged"):
        open_source(tmp_path, "train")


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    put_idx(tmp_path, idx(IMAGES))
    with pytest.raises(DataError, match=r"has no t10k-images-idx3-ubyte \(or \.gz\)"):
        open_source(tmp_path, "val")
