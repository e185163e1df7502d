"""Classes of two collections, matched by name."""

import numpy as np
import pytest

from convnextv2.data.collection import DataError
from convnextv2.data.labels.classes import match_classes


@pytest.mark.parametrize(
    ("classes", "numbers"),
    [
        (("ant", "bee", "cat"), [0, 1, 2]),
        (("ant", "cat"), [0, 2]),
        (("cat", "ant", "bee"), [2, 0, 1]),
        ((), []),
    ],
)
def test_labels_take_the_numbers_of_the_known_classes(
    classes: tuple[str, ...], numbers: list[int]
) -> None:
    found = match_classes(classes, ("ant", "bee", "cat"), of="val", among="train")
    assert found.tolist() == [*numbers, -1]
    # An unlabelled image stays one.
    assert found[np.array([-1])].tolist() == [-1]


def test_what_is_not_known_is_refused_with_both_lists() -> None:
    with pytest.raises(DataError) as refused:
        match_classes(("ant", "bee", "cat"), ("ant", "cat"), of="val", among="train")
    assert str(refused.value).splitlines() == [
        "1 of the 3 classes of val are not among the 2 of train: bee",
        "  val: ant, bee, cat",
        "  train: ant, cat",
    ]


def test_of_long_lists_the_first_are_named() -> None:
    known = tuple(f"n{number:04}" for number in range(1000))
    with pytest.raises(DataError, match=r"1 of .* 1,001 .* 1,000 of train: x\n") as refused:
        match_classes((*known, "x"), known, of="val", among="train")
    assert "n0009 and 991 more" in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("known", [("ant", "ant"), ("ant", "bee")])
def test_a_name_given_twice_matches_nothing(known: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="class ant is named twice among those of"):
        match_classes(("ant", "ant"), known, of="val", among="train")
