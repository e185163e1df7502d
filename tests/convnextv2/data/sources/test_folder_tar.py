"""A tar of a folder is read as the folder; Tiny-ImageNet as distributed."""

import pickle
from collections import Counter
from pathlib import Path

import pytest

from convnextv2.data.collection import DataError
from convnextv2.data.sources import open_source
from tests.convnextv2.data.fixtures.archives import (
    everything,
    jpegs,
    labels_by_file,
    listed,
    put,
    tar,
)

ANTS_AND_BEES = ("ant/0.jpg", "ant/deep/1.jpg", "bee/0.jpg")


@pytest.mark.parametrize("above", ["", "./", "photos/", "./all/photos/"])
def test_folders_in_a_tar_are_classes(tmp_path: Path, above: str) -> None:
    images = jpegs(*ANTS_AND_BEES)
    files = {f"{above}{name}": content for name, content in images.items()}
    others = {"__MACOSX/ant/._0.jpg": b"", f"{above}ant/notes.md": b""}
    put(tmp_path / "tar/photos.tar", tar(files | others))
    for name, content in images.items():
        put(tmp_path / "folder" / name, content)

    packed, loose = (open_source(tmp_path / kind, "train") for kind in ("tar", "folder"))

    assert packed.classes == loose.classes == ("ant", "bee")
    contents = [[(stored.content, label) for stored, label in everything(source)]
                for source in (packed, loose)]  # fmt: skip
    assert contents[0] == contents[1]
    # The same keys make the same hold-out.
    keys = [sorted(key for part in listed(source) for key in part["key"])
            for source in (packed, loose)]  # fmt: skip
    assert keys[0] == keys[1]
    kinds: Counter[str] = Counter()
    packed.members(0, kinds)
    assert kinds == {".md": 1}
    assert pickle.loads(pickle.dumps(packed)) == packed


def test_a_tar_may_hold_the_folders_of_the_splits(tmp_path: Path) -> None:
    names = ("cifar/train/ant/0.jpg", "cifar/train/bee/1.jpg", "cifar/test/bee/2.jpg")
    path = put(tmp_path / "cifar.tar", tar(jpegs(*names)))
    train, val = open_source(path, "train"), open_source(path, "val")
    assert train.has_splits
    assert val.has_splits
    assert labels_by_file(train) == {"0.jpg": "ant", "1.jpg": "bee"}
    assert labels_by_file(val) == {"2.jpg": "bee"}
    assert train.fingerprint() != val.fingerprint()
    put(path, tar(jpegs("cifar/valid/ant/0.jpg", "cifar/test/bee/2.jpg")))
    with pytest.raises(DataError, match=r"cifar\.tar has a folder test but none for 'train'"):
        open_source(path, "train")


def test_images_beside_folders_in_a_tar_are_unlabelled_and_that_is_said(tmp_path: Path) -> None:
    path = put(tmp_path / "x.tar", tar(jpegs("a/0.jpg", "b/1.jpg", "2.jpg")))
    source = open_source(path, "train")
    assert [label for _, label in everything(source)] == [-1, -1, -1]
    assert source.notes == (
        f"{path} has images beside folders, so that no folder is a class: all are unlabelled",
    )
    put(path, tar(jpegs("photos/0.jpg", "photos/1.jpg")))
    assert open_source(path, "train").classes == open_source(path, "train").notes == ()


@pytest.mark.parametrize("files", [{"ant/0.avif": b"1"}, {}])
def test_a_tar_without_images_says_what_it_holds(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = put(tmp_path / "x.tar", tar(files))
    told = r"only \.avif \(1\)" if files else "nothing"
    with pytest.raises(DataError, match=rf"x\.tar holds no images: {told}"):
        open_source(path, "train")


def test_a_class_tar_without_images_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "ant.tar", tar(jpegs("0.jpg")))
    put(tmp_path / "bee.tar", tar({"0.heic": b"1", "1.heic": b"1", "._0.jpg": b"1"}))
    with pytest.raises(DataError, match=r"bee\.tar would be a class .* holds only \.heic \(2\)"):
        listed(open_source(tmp_path, "train"))


# Tiny-ImageNet

SYNSETS = ("n01443537", "n01629819", "n02106662")


def put_tiny_imagenet(root: Path) -> Path:
    for name, content in jpegs(*(f"{synset}_{n}.JPEG" for synset in SYNSETS for n in "01")).items():
        put(root / "train" / name[:9] / "images" / name, content)
        put(root / "train" / name[:9] / f"{name[:9]}_boxes.txt", f"{name}\t0\t0\t62\t62\n")
    for name, content in jpegs("val_0.JPEG", "val_1.JPEG", "val_10.JPEG").items():
        put(root / "val/images" / name, content)
    put(root / "test/images/test_0.JPEG", b"unlabelled")
    lines = [("val_0.JPEG", 1), ("val_10.JPEG", 0), ("val_1.JPEG", 1)]
    told = "".join(f"{name}\t{SYNSETS[number]}\t0\t32\t44\t62\n" for name, number in lines)
    put(root / "val/val_annotations.txt", told)
    put(root / "wnids.txt", "\n".join(SYNSETS[::-1]) + "\n")
    return root


def test_both_splits_of_tiny_imagenet_are_read_as_distributed(tmp_path: Path) -> None:
    root = put_tiny_imagenet(tmp_path)
    train, val = open_source(root, "train"), open_source(root, "val")
    # One class has no validation image; the list of classes makes the numbers the same.
    assert train.classes == val.classes == SYNSETS
    assert train.has_splits
    assert val.has_splits
    assert labels_by_file(train) == {f"{s}_{n}.JPEG": s for s in SYNSETS for n in "01"}
    assert labels_by_file(val) == {
        "val_0.JPEG": SYNSETS[1], "val_1.JPEG": SYNSETS[1], "val_10.JPEG": SYNSETS[0],
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(val)) == val
    (root / "wnids.txt").unlink()
    assert open_source(root, "val").classes == SYNSETS[:2]
    assert labels_by_file(open_source(root, "val"))["val_1.JPEG"] == SYNSETS[1]


def test_annotations_that_do_not_fit_are_told(tmp_path: Path) -> None:
    root = put_tiny_imagenet(tmp_path)
    put(root / "val/images/val_7.JPEG", b"1")
    with pytest.raises(
        DataError, match=r"val_annotations\.txt lacks 1 images of images/, such as v"
    ):
        listed(open_source(root, "val"))
    (root / "val/images/val_7.JPEG").rename(root / "train/7.JPEG")
    (root / "val/images/val_0.JPEG").unlink()
    kinds: Counter[str] = Counter()
    assert len(open_source(root, "val").members(0, kinds)) == 2
    assert kinds == {"lines of val_annotations.txt without an image": 1}
    put(root / "val/val_annotations.txt", "val_1.JPEG\tn09999999\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"has class n09999999, which .*wnids\.txt lacks"):
        open_source(root, "val")
    put(root / "val/val_annotations.txt", "val_1.JPEG n01443537\n")
    with pytest.raises(
        DataError, match=r"is not understood: a line is an image, a tab, and its cl"
    ):
        open_source(root, "val")


def test_validation_images_that_change_are_noticed(tmp_path: Path) -> None:
    root = put_tiny_imagenet(tmp_path)
    val = open_source(root, "val")
    members, before = val.members(0), val.fingerprint()
    annotations = root / "val/val_annotations.txt"
    put(annotations, annotations.read_text().replace(SYNSETS[1], SYNSETS[2]))
    assert val.fingerprint() != before
    with pytest.raises(DataError, match=r"val_0\.JPEG was not there when its part was listed"):
        list(val.read(0, members))
