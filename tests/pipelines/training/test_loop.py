"""The training loop's start, with parts that only note what is asked of them."""

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from cluster import group
from cluster.resilience.goodput import Stopwatch
from cluster.workers import current
from cluster.workers.beacon import Beacon
from pipelines.runtime.events import EventLog, read_events
from pipelines.runtime.follow import in_words
from pipelines.training import loop
from pipelines.training.run import Run


def test_memory_for_checkpoints_is_taken_before_the_first_step(tmp_path: Path) -> None:
    parts = {name: MagicMock() for name in Run.__dataclass_fields__ if name != "noted"}
    parts["job"].directory, parts["checkpoints"].root = tmp_path, tmp_path / "checkpoints"
    run = Run(**parts)
    assert run.resume() == 0
    parts["checkpoints"].begin.assert_called_once_with(0, parts["engine"].fragments, {})
    parts["engine"].train_step.assert_not_called()


def test_a_gpu_that_others_use_is_told_on_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {name: MagicMock() for name in Run.__dataclass_fields__ if name != "noted"}
    parts["job"].directory, parts["checkpoints"].root = tmp_path, tmp_path / "checkpoints"
    parts["plan"].total_steps, parts["clock"].seconds = 9, {}
    run = Run(**parts)
    run.event_log = EventLog(tmp_path, active=True)
    workers = [("a", ""), ("b", "other processes use it"), ("c", "they do"), ("d", "they do")]
    monkeypatch.setattr(group, "all_gather", lambda own: workers)
    run.resume()
    said = [sentence for event in read_events(tmp_path) if (sentence := in_words(event))]
    assert said == [
        "training may be slow: on the GPU of worker 1 on b other processes use it, and 2 more "
        "GPUs are shared"
    ]


def test_a_group_that_starts_at_the_end_has_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers before it failed after their last step: there is none left to wait for."""
    run = MagicMock()
    told: list[str] = []
    run.resume.return_value = run.plan.total_steps = 7
    run.global_batches.return_value = []
    monkeypatch.setattr(Run, "assemble", lambda job, clock: run)
    monkeypatch.setattr(loop, "worker_log", lambda path, rank: nullcontext())
    monkeypatch.setattr(current, "_worker", current.CurrentWorker(Beacon.on(None), told.append))
    loop.train(MagicMock())
    assert told == ["first step"]
    run.finish.assert_called_once_with(7)


def test_a_save_that_waits_for_storage_is_in_the_phase_of_checkpoints() -> None:
    """The watchdog has a limit for it, which is longer than that of a step."""
    beacon, phases = Beacon.on(None), []
    run = MagicMock(clock=Stopwatch(beacon), validator=None)
    run.job.log_every = run.job.cluster.divergence_check_every = run.plan.total_steps = 1
    run.feed.global_batches.return_value = [(0, [])]
    run.feed.reached.side_effect = int
    run.save.side_effect = lambda step: phases.append((step, beacon.phase))
    loop.train_from(0, run)
    assert phases == [(1, "checkpoint")]
