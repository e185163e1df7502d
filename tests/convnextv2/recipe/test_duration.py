"""Durations: how they are read, what they come to, and that none is lost on the way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextv2.recipe.duration import Duration, Unit, epochs, steps

# ImageNet-1K at batch 4096, as the paper pretrains: 312 steps an epoch.
IMAGENET = {"batches_per_epoch": 312, "global_batch_size": 4096}
UNITS: list[Unit] = ["epochs", "steps", "images", "%"]


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("1600 epochs", None, 499_200),
        ("1 epoch", None, 312),
        ("0.5 epochs", None, 156),
        ("5000 steps", None, 5000),
        ("12800000 images", None, 3125),
        ("1.28e7 images", None, 3125),
        ("5%", 499_200, 24_960),
        ("100 %", 7, 7),
        ("1%", 20, 1),  # At least one step of whatever is asked for,
        ("1 image", None, 1),
        ("0.001 epochs", None, 1),
        ("0 epochs", None, 0),  # but nothing stays nothing.
        ("0%", 100, 0),
        ("2049 images", None, 1),
        ("6145 images", None, 2),  # To the nearest.
    ],
)
def test_steps(text: str, total: int | None, expected: int) -> None:
    assert Duration.parse(text, "steps").steps(**IMAGENET, total_steps=total) == expected


@pytest.mark.parametrize("value", [8, 8.0, "8", " 8 "])
def test_a_bare_number_counts_what_the_field_says(value: object) -> None:
    assert Duration.parse(value, "epochs") == epochs(8)
    assert Duration.parse(value, "steps") == steps(8)


@pytest.mark.parametrize(
    "value", ["many", "", "epochs", "8 weeks", "-1 steps", "1e999x", "8 epochs 2", True, None, [8]]
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="expected a duration, like 8 epochs, 5000 steps"):
        Duration.parse(value, "epochs")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.5 steps", "steps are whole numbers, 1.5 is not"),
        ("0.5 images", "images are whole numbers, 0.5 is not"),
        ("101%", "101% is more than the whole training; at most 100% would work"),
        ("1e999 epochs", "a duration is 0 or more, inf is not"),
    ],
)
def test_amounts_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Duration.parse(text, "epochs")


def test_the_whole_is_no_percentage_of_itself() -> None:
    with pytest.raises(ValueError, match="cannot be 5% of itself"):
        Duration(5, "%").steps(**IMAGENET, total_steps=None)


@pytest.mark.parametrize(
    ("duration", "text"),
    [(epochs(800), "800 epochs"), (epochs(1), "1 epoch"), (epochs(0.5), "0.5 epochs"),
     (steps(12_800_000), "12800000 steps"), (Duration(2.5, "%"), "2.5%")],
)  # fmt: skip
def test_its_text(duration: Duration, text: str) -> None:
    assert str(duration) == text


@given(
    st.builds(Duration, st.integers(0, 10**15), st.sampled_from(UNITS[:3]))
    | st.builds(Duration, st.floats(0, 1e300), st.just("epochs"))
    | st.builds(Duration, st.floats(0, 100), st.just("%"))
)
def test_its_text_is_read_back_as_the_same(duration: Duration) -> None:
    for bare in UNITS:
        assert Duration.parse(str(duration), bare) == duration
