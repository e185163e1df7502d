"""The training benchmark measures what it says, on the smallest model."""

import pytest

from pipelines.bench.train.__main__ import table
from pipelines.bench.train.workers import run_group

SMALL: dict[str, object] = {"size": "pocket", "image_size": 64, "batch": 2}


@pytest.mark.slow
def test_a_group_measures() -> None:
    (saved,) = run_group("saving", 1, {"turns": 1, **SMALL})
    (used,) = run_group("memory", 1, {"stage": 0, "precision": "fp32", "ema": True, **SMALL})
    # Weights, two moments and an average.
    assert saved["megabytes"] * 1e6 == pytest.approx(4 * 4 * used["parameters"], rel=0.05)
    assert saved["behind"] > 0
    assert table("checkpoint", [{**saved}]).row_count == 1


@pytest.mark.slow
def test_a_worker_that_fails_is_an_error_with_its_words() -> None:
    settings = {**SMALL, "size": "colossal", "stage": 0, "precision": "fp32", "ema": False}
    with pytest.raises(RuntimeError, match=r"worker 0 of memory failed(.|\n)*colossal"):
        run_group("memory", 1, settings)
