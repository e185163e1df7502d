"""The training loop's start, with parts that only note what is asked of them."""

from pathlib import Path
from unittest.mock import MagicMock

from pipelines.training.run import Run


def test_memory_for_checkpoints_is_taken_before_the_first_step(tmp_path: Path) -> None:
    parts = {name: MagicMock() for name in Run.__dataclass_fields__ if name != "noted"}
    parts["job"].directory, parts["checkpoints"].root = tmp_path, tmp_path / "checkpoints"
    run = Run(**parts)
    assert run.resume() == 0
    parts["checkpoints"].begin.assert_called_once_with(0, parts["engine"].fragments, {})
    parts["engine"].train_step.assert_not_called()
