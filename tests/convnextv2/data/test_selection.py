"""Splits, class subsets, few labels, limits: decided on listings by hashes of names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnextv2.data.collection import MEMBER, DataError, Members, Split, name_key
from convnextv2.data.selection import VAL_FRACTION, Selection, open_selected, select
from tests.convnextv2.data.fixtures.archives import jpeg, put

CLASSES = ("ant", "bee", "cat", "dog")


def part(names: Sequence[str], label: int) -> Members:
    members = np.zeros(len(names), MEMBER)
    members["key"] = [name_key(name) for name in names]
    members["offset"], members["size"], members["label"] = range(len(names)), 100, label
    return members


def per_class(count: int = 250) -> list[Members]:
    """A part for each class."""
    return [part([f"{c}/{n}" for n in range(count)], label) for label, c in enumerate(CLASSES)]


def shuffled(count: int = 250, parts: int = 3) -> list[Members]:
    """The same images, mixed over parts as in shards."""
    together = np.concatenate(per_class(count))
    return np.array_split(together[np.random.default_rng(0).permutation(len(together))], parts)


def keys(listings: Sequence[Members]) -> set[int]:
    found = np.concatenate(listings)["key"].tolist()
    assert len(set(found)) == len(found)
    return set(found)


def chosen(listings: Sequence[Members], **selection: Any) -> set[int]:
    return keys(select(listings, CLASSES, Selection(**selection))[0])


def test_everything_is_what_there_is() -> None:
    listings = per_class()
    selected, classes = select(listings, CLASSES, Selection())
    assert classes == CLASSES
    for before, after in zip(listings, selected, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_a_hold_out_has_its_share_and_leaves_the_rest(share: float) -> None:
    train = chosen(per_class(), split="train", val_fraction=share)
    val = chosen(per_class(), split="val", val_fraction=share)
    assert not train & val
    assert train | val == keys(per_class())
    # Four standard deviations.
    assert abs(len(val) - 1000 * share) < 4 * (1000 * share * (1 - share)) ** 0.5


def test_nothing_is_held_out_if_so_asked() -> None:
    assert chosen(per_class(), val_fraction=0.0) == keys(per_class())


def test_no_image_changes_sides_when_others_come_or_the_share_grows() -> None:
    held = chosen(per_class(150), split="val", val_fraction=0.1)
    assert chosen(per_class(250), split="val", val_fraction=0.1) & keys(per_class(150)) == held
    assert held < chosen(per_class(150), split="val", val_fraction=0.2)
    assert chosen(shuffled(150), split="val", val_fraction=0.1) == held


def test_a_seed_holds_out_others() -> None:
    selection = Selection("val", val_fraction=0.1)
    first, again, other = (
        keys(select(per_class(), CLASSES, selection, seed)[0]) for seed in (1, 1, 2)
    )
    assert first == again
    assert len(first & other) < 0.5 * len(first)


def test_what_is_left_keeps_its_part_and_its_order() -> None:
    selection = Selection(val_fraction=0.3, labels_per_class=100, max_images=150)
    selected, _ = select(shuffled(), CLASSES, selection)
    assert [len(members) > 0 for members in selected] == [True] * 3
    for before, after in zip(shuffled(), selected, strict=True):
        places = [before["key"].tolist().index(key) for key in after["key"]]
        assert places == sorted(places)
        np.testing.assert_array_equal(before[places], after)


@pytest.mark.parametrize("listings", [per_class(), shuffled()], ids=["classes", "shards"])
@pytest.mark.parametrize("count", [1, 7, 200])
def test_each_class_gives_so_many_labels(listings: list[Members], count: int) -> None:
    selection = Selection(val_fraction=0.1, labels_per_class=count)
    selected, _ = select(listings, CLASSES, selection)
    assert np.bincount(np.concatenate(selected)["label"]).tolist() == [count] * 4
    assert keys(selected) <= chosen(listings, val_fraction=0.1)
    assert keys(selected) == chosen(per_class(), val_fraction=0.1, labels_per_class=count)


def test_fewer_labels_are_part_of_more() -> None:
    few, more = (chosen(per_class(), labels_per_class=count) for count in (5, 20))
    assert few < more


@pytest.mark.parametrize("limit", [1, 10, 999])
def test_a_limit_is_of_all_classes_together(limit: int) -> None:
    limited = chosen(per_class(), max_images=limit)
    assert len(limited) == limit
    assert limited == chosen(shuffled(), max_images=limit)
    assert chosen(per_class(), max_images=max(1, limit // 2)) <= limited


def test_a_limit_beyond_the_end_takes_all() -> None:
    assert chosen(per_class(), max_images=10**9) == keys(per_class())


def test_images_with_one_name_are_still_counted() -> None:
    listings = [part(["same"] * 10, label) for label in range(4)]
    selected, _ = select(listings, CLASSES, Selection(labels_per_class=3, max_images=7))
    assert sum(map(len, selected)) == 7


def test_a_subset_of_the_classes_is_numbered_by_its_sorted_names() -> None:
    # The order in which they are named does not count: ImageNet-1K's labels are those of its
    # sorted synsets, wherever its images come from.
    for listings in (per_class(), shuffled()):
        selected, classes = select(listings, CLASSES, Selection(classes=("dog", "bee")))
        assert classes == ("bee", "dog")
        together = np.concatenate(selected)
        names = {name_key(f"{c}/{n}"): c for c in CLASSES for n in range(250)}
        assert [classes[label] for label in together["label"]] == [
            names[key] for key in together["key"]
        ]
        assert len(together) == 500


def test_choosing_does_not_write_into_the_listings() -> None:
    listings = per_class()
    select(listings, CLASSES, Selection(classes=("dog",)))
    for before, after in zip(per_class(), listings, strict=True):
        np.testing.assert_array_equal(before, after)


def test_unlabelled_images_are_in_no_class() -> None:
    listings = [*per_class(), part(["x", "y"], -1)]
    selected, _ = select(listings, CLASSES, Selection(classes=CLASSES))
    assert keys(selected) == keys(per_class())
    assert select([part(["x", "y"], -1)], (), Selection(max_images=1))[1] == ()


def test_labels_without_names_are_named_by_their_numbers() -> None:
    listings = [part(["a"], 2), part([], 0), part(["b"], 0)]
    assert select(listings, (), Selection())[1] == ("0", "1", "2")
    selected, classes = select(listings, (), Selection(classes=("2",)))
    assert classes == ("2",)
    assert [members["label"].tolist() for members in selected] == [[0], [], []]


def test_a_hold_out_has_the_numbers_of_all_images() -> None:
    listings = [part([str(number)], number) for number in range(40)]
    for split in ("train", "val"):
        selected, classes = select(listings, (), Selection(split, val_fraction=0.5))
        assert len(classes) == 40
        assert 0 < sum(map(len, selected)) < 40


def test_a_validation_split_need_not_have_every_class_that_is_named() -> None:
    few, wanted = [part(["a", "b"], 1)], ("ant", "cat")
    selected, classes = select(few, ("bee", "cat"), Selection("val", classes=wanted))
    assert classes == wanted
    assert selected[0]["label"].tolist() == [1, 1]
    with pytest.raises(DataError, match=r"1 of the 2 classes asked for are not among .* as ant"):
        select(few, ("bee", "cat"), Selection("train", classes=wanted))
    with pytest.raises(DataError, match="2 of the 2 classes asked for are not among"):
        select(few, ("bee", "cat"), Selection("val", classes=("ant", "fly")))


@pytest.mark.parametrize("label", [4, 1000, -2])
def test_a_label_that_is_no_class_is_explained(label: int) -> None:
    listings = [*per_class(), part(["x"], label)]
    with pytest.raises(DataError, match=f"a label {label}, and 4 classes .* expected 0 to 3, or"):
        select(listings, CLASSES, Selection())


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"val_fraction": -0.1}, r"val_fraction is a share from 0 to below 1, not -0\.1"),
        ({"val_fraction": 1.0}, r"val_fraction is a share from 0 to below 1, not 1\.0"),
        (
            {"val_fraction": 0.0, "split": "val"},
            r"val_fraction = 0 leaves nothing for the split 'val'",
        ),
        ({"max_images": 0}, r"max_images = 0 leaves no images; give at least 1"),
        ({"labels_per_class": -1}, r"labels_per_class = -1 leaves no images"),
        ({"classes": ()}, r"no classes are named"),
        ({"classes": ("cat", "dog", "cat")}, r"class cat is named twice"),
        (
            {"classes": ("cat", "do", "x")},
            r"2 of the 3 classes .*among the 4 .* do; did you mean d",
        ),
        ({"labels_per_class": 251}, r"class ant has only 250 images; give at most 250, or"),
    ],
)
def test_a_selection_that_cannot_be_made_is_explained(
    selection: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        chosen(per_class(), **selection)


def test_a_hold_out_of_too_few_images_is_explained() -> None:
    few = [part(["ant/1"], 0)]
    with pytest.raises(DataError, match=r"1 images are too few to hold out a share of 0\.001"):
        select(few, CLASSES, Selection("val", val_fraction=0.001))
    with pytest.raises(DataError, match=r"no images are left of 0"):
        select([part([], 0)], CLASSES, Selection())
    with pytest.raises(DataError, match=r"needs labels: 2 of 252 images have none"):
        select([per_class()[0], part(["x", "y"], -1)], CLASSES, Selection(labels_per_class=1))


# Where a split comes from


def opened(
    root: Path, split: Split, val_fraction: float | None = None
) -> tuple[list[str], Selection]:
    source, selection = open_selected(root, Selection(split, val_fraction))
    return list(source.parts), selection


def test_a_collection_without_splits_has_a_tenth_held_out(tmp_path: Path) -> None:
    put(tmp_path / "cat/1.jpg", jpeg())
    for split in ("train", "val"):
        whole: Split = "train" if split == "train" else "val"
        assert opened(tmp_path, whole) == ([f"{tmp_path}/cat"], Selection(whole, VAL_FRACTION))
        assert opened(tmp_path, whole, 0.3) == ([f"{tmp_path}/cat"], Selection(whole, 0.3))
    assert opened(tmp_path, "train", 0.0) == ([f"{tmp_path}/cat"], Selection("train", 0.0))


def test_a_hold_out_that_is_asked_for_is_taken_from_the_training_images(tmp_path: Path) -> None:
    put(tmp_path / "train/cat/1.jpg", jpeg())
    put(tmp_path / "val/cat/2.jpg", jpeg())
    assert opened(tmp_path, "val") == ([f"{tmp_path}/val/cat"], Selection("val"))
    assert opened(tmp_path, "val", 0.3) == ([f"{tmp_path}/train/cat"], Selection("val", 0.3))
    assert opened(tmp_path, "train", 0.3) == ([f"{tmp_path}/train/cat"], Selection("train", 0.3))
