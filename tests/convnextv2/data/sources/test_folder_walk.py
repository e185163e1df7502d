"""Folders that are links, what systems leave, and what is passed over."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torchvision
from PIL import Image

from convnextv2.data.collection import DataError
from convnextv2.data.pixels import FORMATS
from convnextv2.data.sources import IMAGE_SUFFIXES, open_source
from convnextv2.data.sources.leftovers import is_leftover
from tests.convnextv2.data.fixtures.archives import everything, jpeg, listed, put


def put_all(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        put(root / name, jpeg(seed))


def names_of(root: Path) -> list[str]:
    source = open_source(root, "train")
    return [str(Path(stored.name).relative_to(root)) for stored, _ in everything(source)]


def passed_over(root: Path) -> Counter[str]:
    source = open_source(root, "train")
    kinds: Counter[str] = Counter()
    for part in range(len(source.parts)):
        source.members(part, kinds)
    return kinds


def test_linked_folders_below_a_class_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    put_all(tmp_path / "store", "batch/1.jpg", "batch/deep/2.jpg", "one.jpg")
    root = tmp_path / "photos"
    put_all(root, "ant/own.jpg", "bee/own.jpg")
    (root / "ant/more").symlink_to("../../store/batch")
    (root / "bee/more").symlink_to("../../store/batch")
    (root / "bee/one.jpg").symlink_to("../../store/one.jpg")

    found = [(stored.name, label) for stored, label in everything(open_source(root, "train"))]

    assert found == sorted(torchvision.datasets.ImageFolder(root).samples)
    assert len(found) == 7
    assert passed_over(root) == {}


def test_each_folder_is_followed_once_and_a_cycle_is_named(tmp_path: Path) -> None:
    put_all(tmp_path, "ant/b/1.jpg", "ant/b/2.jpg", "bee/1.jpg", "store/x/3.jpg")
    # A link that comes before the folder it leads to does not take its place: names, and so the
    # splits that are made by them, stay when somebody adds a link.
    (tmp_path / "ant/a").symlink_to("b")
    (tmp_path / "ant/c").symlink_to("../store")
    (tmp_path / "ant/d").symlink_to("../store/x")
    (tmp_path / "ant/b/up").symlink_to("../..")
    (tmp_path / "ant/itself").symlink_to("itself")
    (tmp_path / "ant/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "store/x/back").symlink_to("../../ant")
    (tmp_path / "round").symlink_to(".")

    source = open_source(tmp_path, "train")
    kinds: Counter[str] = Counter()
    assert len(source.members(0, kinds)) == 3

    assert source.classes == ("ant", "bee", "store")
    assert source.notes == (f"{tmp_path}/round is a link to a folder above it: not read",)
    assert names_of(tmp_path)[:3] == ["ant/b/1.jpg", "ant/b/2.jpg", "ant/c/x/3.jpg"]
    assert kinds == {
        "the link b/up to a folder above it": 1,
        "links to folders that are read already": 3,
        "broken links and special files": 2,
    }


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all(tmp_path, "ant/1.jpg", "ant/locked/2.jpg")
    source = open_source(tmp_path, "train")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"ant/locked cannot be listed: .*Permission denied"):
        source.members(0)


LEFTOVERS = [
    "__MACOSX/ant/._0.jpg", "lost+found/#1.jpg", "ant/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
    "ant/._0.jpg", "ant/.DS_Store", "ant/Thumbs.db", "$RECYCLE.BIN/1.jpg", "#recycle/1.jpg",
    "System Volume Information/1.jpg", "ant/.ipynb_checkpoints/0-checkpoint.jpg", "bee/desktop.ini",
]  # fmt: skip


def test_what_systems_leave_is_no_class_and_no_image(tmp_path: Path) -> None:
    put_all(tmp_path, "ant/0.jpg", "bee/1.jpg", *LEFTOVERS)
    source = open_source(tmp_path, "train")
    assert source.classes == ("ant", "bee")
    assert names_of(tmp_path) == ["ant/0.jpg", "bee/1.jpg"]
    assert passed_over(tmp_path) == {}
    assert all(map(is_leftover, LEFTOVERS))
    assert not any(map(is_leftover, ["./ant/0.jpg", "../ant/0.jpg", "recycled/x.jpg"]))


def test_every_suffix_of_the_formats_that_are_read_is_an_image(tmp_path: Path) -> None:
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert known <= IMAGE_SUFFIXES
    put_all(tmp_path, *(f"ant/{suffix[1:]}{suffix.upper()}" for suffix in sorted(known)))
    no_text = b"x.\xff".decode(errors="surrogateescape")
    put_all(tmp_path, "ant/x.avif", "ant/y.avif", "ant/z.JP2", "ant/readme", f"ant/{no_text}")
    assert len(listed(open_source(tmp_path, "train"))[0]) == len(known)
    assert passed_over(tmp_path) == {".avif": 2, ".jp2": 1, "without a suffix": 1, r".\xff": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bee/0.avif", "bee/1.avif", "bee/a/2.jp2"], r"it holds only \.avif \(2\), \.jp2 \(1\)\."),
        ([], r"it holds nothing\. Images are files named .*\.bmp .*: convert them, or move it out"),
    ],
)
def test_a_class_without_images_is_refused_with_what_is_there(
    tmp_path: Path, names: list[str], message: str
) -> None:
    put_all(tmp_path, "ant/0.jpg", *names)
    (tmp_path / "bee").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=rf"{tmp_path}/bee would be a class without.*{message}"):
        listed(open_source(tmp_path, "train"))


def test_a_folder_without_any_image_says_what_is_there(tmp_path: Path) -> None:
    put_all(tmp_path, "a/1.npz", "a/2.npz", "b/3.heic")
    with pytest.raises(DataError, match=r"no images under .*; there are \.npz \(2\), \.heic \(1\)"):
        open_source(tmp_path, "train")


def test_folders_that_are_seldom_classes_are_named(tmp_path: Path) -> None:
    put_all(tmp_path, "images/0.jpg", "Masks/0.png", "cat/0.jpg")
    (note,) = open_source(tmp_path, "train").notes
    assert note.startswith(f"{tmp_path}: Masks, images are read as classes, as every name")
    put_all(tmp_path / "fine", "cat/0.jpg", "dog/0.jpg")
    assert open_source(tmp_path / "fine", "train").notes == ()


def test_numbers_are_in_the_order_of_text_and_said_to_be(tmp_path: Path) -> None:
    put_all(tmp_path, *(f"{number}/0.jpg" for number in range(12)))
    source = open_source(tmp_path, "train")
    assert list(source.classes) == torchvision.datasets.ImageFolder(tmp_path).classes
    assert source.classes[:4] == ("0", "1", "10", "11")
    assert source.notes == (
        f"{tmp_path}: classes are numbers, in the order of text as in torchvision: class 10 has "
        "label 2",
    )
