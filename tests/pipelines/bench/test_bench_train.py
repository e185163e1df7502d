"""The training benchmark measures what it says, on the smallest model."""

from typing import Any

import pytest

from pipelines.bench.train.__main__ import table
from pipelines.bench.train.measurements import take_turns
from pipelines.bench.train.workers import run_group

SMALL: dict[str, Any] = {"size": "pocket", "image_size": 64, "batch": 2}


def test_contenders_take_turns_and_the_first_ones_do_not_count() -> None:
    calls: list[str] = []
    rows = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert calls == ["a", "b"] * 5
    assert [len(row) for row in rows] == [2, 2]


@pytest.mark.slow
def test_a_group_measures() -> None:
    saved = run_group("saving", 1, turns=1, **SMALL)
    parameters = run_group(
        "memory", 1, stage=0, precision="fp32", ema=True, **SMALL
    )["parameters"]  # fmt: skip
    # Weights, two moments and an average.
    assert saved["megabytes"] * 1e6 == pytest.approx(4 * 4 * parameters, rel=0.05)
    assert saved["behind"] > 0
    assert table("checkpoint", [saved]).row_count == 1


@pytest.mark.slow
def test_a_worker_that_fails_is_an_error_with_its_words() -> None:
    with pytest.raises(RuntimeError, match=r"worker 0 of memory failed(.|\n)*colossal"):
        run_group("memory", 1, size="colossal", image_size=64, batch=2, stage=0,
                  precision="fp32", ema=False)  # fmt: skip
