"""Optimizer state in the host's memory: the same training, the same checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.checkpoint.async_saver import Saver
from cluster.checkpoint.retention import KeepPolicy
from cluster.checkpoint.store import latest_good
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import ZeroSettings
from tests.cluster.engine.toy import computed_with, go_on, new_engine, notes, plain
from tests.cluster.process_group import run_group

pytestmark = pytest.mark.soak  # DeepSpeed compiles its AdamW for the host, about a minute.
STEPS, HALF = 6, 3
OFFLOADED: list[dict[str, Any]] = [
    {"stage": 1, "offload_optimizer": "cpu"},
    {"stage": 2, "offload_optimizer": "cpu"},
    {"stage": 3, "offload_optimizer": "cpu"},
    {"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
]


def laboratory(folder: Path) -> None:
    found = []
    for number, zero in enumerate(OFFLOADED):
        root = folder / str(number)
        settings = EngineSettings(zero=ZeroSettings(pin_memory=False, **zero), ema_decay=0.9)
        engine = new_engine(settings)
        saver = Saver(root, KeepPolicy())
        metrics = go_on(engine, 0, HALF)
        saver.save(HALF, engine.fragments, notes(engine))
        metrics += go_on(engine, HALF, STEPS)
        saver.wait()
        again = new_engine(settings, seed=1)
        last = latest_good(root).found
        assert last is not None
        again.restore(last.path, last.notes)
        found.append(
            {
                "metrics": metrics,
                "again": go_on(again, HALF, STEPS),
                "weights": (computed_with(engine), computed_with(again)),
            }
        )
    if dist.get_rank() == 0:
        torch.save(found, folder / "found.pt")


def test_offloaded_training_is_plain_training(tmp_path: Path) -> None:
    run_group(laboratory, 2, tmp_path, tmp_path)
    expected = plain(STEPS)
    for run in torch.load(tmp_path / "found.pt"):
        assert [point["loss"] for point in run["metrics"]] == pytest.approx(
            expected["loss"], rel=1e-5
        )
        first, again = run["weights"]
        torch.testing.assert_close(first, expected["weights"][-1], rtol=1e-4, atol=1e-6)
        assert run["again"] == run["metrics"][HALF:]
        torch.testing.assert_close(again, first, rtol=0, atol=0)
