"""Collectives among real workers."""

from pathlib import Path

import pytest
import torch

from cluster import group
from tests.cluster.process_group import run_group


def mean_and_each() -> None:
    rank = group.rank()
    metrics = {"loss": torch.tensor(2.0**rank), "accuracy": torch.tensor(rank / 2)}
    values, each = group.mean_and_each(metrics, 10.0 + rank)
    assert values == {"accuracy": 0.5, "loss": pytest.approx(7 / 3)}
    assert each == [10.0, 11.0, 12.0]


@pytest.mark.slow
def test_a_mean_of_metrics_and_a_number_of_every_worker_in_one_reduction(tmp_path: Path) -> None:
    run_group(mean_and_each, 3, tmp_path)


def test_alone_the_mean_is_ones_own() -> None:
    assert group.mean_and_each({"loss": torch.tensor(0.5)}, 3.0) == ({"loss": 0.5}, [3.0])
