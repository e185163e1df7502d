"""A spike of the loss: training goes back, leaves the steps around it out, and says so."""

import json
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from cluster.checkpoint.publishing import publish
from cluster.checkpoint.store import latest_good, step_of, steps
from cluster.durable import write as write_file
from cluster.resilience.conductor import Conductor
from cluster.resilience.fault_injection import VARIABLE
from cluster.resilience.incidents import Incident
from cluster.resilience.lease import Lease, Superseded
from convnextv2.data.writing import WriteSettings
from pipelines.presets import load_preset
from pipelines.runtime.events import Checkpoint, Interval, curve, read_events
from pipelines.training.anomalies.spikes import (
    FEWEST,
    FILE,
    HISTORY,
    MOST,
    LossSpike,
    SpikeDetector,
    TooManySpikes,
    Window,
    Windows,
    first_left_out,
    leave_out,
    look_back,
)
from pipelines.training.job import TrainJob
from pipelines.training.loop import train, train_from
from tests.cluster.process_group import run_group
from tests.cluster.resilience.groups.local_agents import LocalPlacer, job
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.pipelines.stages.jobs import made_up_job

TOTAL, AT, WINDOW, EVERY = 60, 27, 4, 5
LEFT_OUT = range(AT - WINDOW, AT + WINDOW)
SETTINGS = (
    "model.image_size=16",
    "model.patch_size=8",
    "model.stem_stride=1",
    f"pretrain.duration={TOTAL} steps",
    "pretrain.warmup=0",
    "pretrain.train_images=null",
    "pretrain.global_batch_size=4",
    "pretrain.micro_batch_size=1",
    "pretrain.decoder_dim=16",
    "pretrain.spike_factor=3",
    f"pretrain.spike_window={WINDOW}",
    "log_every=1",
)


def window(first: int, end: int) -> Window:
    return Window(first=first, end=end, step=first + 1, loss=9.0, median=1.0)


def job_in(shards: Path, directory: Path, checkpoint_every: str = f"{EVERY} steps") -> TrainJob:
    config = load_preset("demo", [*SETTINGS, f"pretrain.checkpoint_every={checkpoint_every}"])
    directory.mkdir(exist_ok=True)
    return made_up_job(config, config.pretrain, directory, shards=shards, seed=3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "train"
    write(Pictures(((16, 16),) * 16), folder, WriteSettings(mode="raw"))
    return folder


def group_of(size: int, job: TrainJob, folder: Path) -> None:
    folder.mkdir()
    run_group(train, size, folder, job)


def weights(stage: Path) -> list[bytes]:
    found = latest_good(stage / "checkpoints").found
    assert found is not None
    assert found.step == TOTAL
    return [path.read_bytes() for path in sorted(found.path.glob("*.safetensors"))]


def plan(monkeypatch: pytest.MonkeyPatch, kind: str, at: int, marker: Path, rank: int = 0) -> None:
    monkeypatch.setenv(VARIABLE, f"{kind} rank={rank} step={at} marker={marker}")


@pytest.mark.slow
def test_a_group_goes_back_and_leaves_the_steps_out(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It then is, bitwise, the run that left them out from the start, saving when it liked."""
    marker = tmp_path / "fired"
    plan(monkeypatch, "spike", AT, marker, rank=1)
    noted: list[Incident] = []
    said: list[str] = []
    stage = tmp_path / "stage"
    conductor = Conductor(LocalPlacer(2), [2], "pretrain", note=noted.append, say=said.append)
    conductor.run(job(train, job_in(shards, stage)))
    assert marker.exists()
    assert {(each.cause, each.rank) for each in noted} == {("spike", 0)}
    assert noted[-1].recovered
    assert noted[-1].lost_steps in (AT + 1 - 20, AT + 2 - 20), "the host learns of it a step late"
    assert f"steps {LEFT_OUT.start + 1} to {LEFT_OUT.stop} are left out" in said[0]
    # That of step 25 has seen two of the steps: it is kept, and not gone on from.
    assert [path.name[:22] for path in (stage / "checkpoints").glob("*.rejected-*")] == [
        "step-00000025.rejected"
    ]

    [left_out] = Windows.read(stage).each
    assert range(left_out.first, left_out.end) == LEFT_OUT
    straight = tmp_path / "straight"
    told = job_in(shards, straight, checkpoint_every="auto")
    (straight / FILE).write_text((stage / FILE).read_text())
    monkeypatch.delenv(VARIABLE)
    group_of(2, told, tmp_path / "group")
    assert weights(straight) == weights(stage)
    for each in (stage, straight):
        points = curve(read_events(each))
        assert [point.step for point in points] == [
            step + 1 for step in range(TOTAL) if step not in LEFT_OUT
        ]
        assert points[-1].values["skipped_steps"] == len(LEFT_OUT)
    events = read_events(straight)
    # 50 steps are trained before the first, of which 8 are left out.
    saved = [event.step for event in events if isinstance(event, Checkpoint)]
    assert saved == [50 + len(LEFT_OUT), TOTAL]
    chosen, *_ = [event for event in events if isinstance(event, Interval)]
    assert chosen.step == saved[0]
    assert chosen.values["block_seconds"] < chosen.values["step_seconds"] * 100
    assert min(point.values["images_per_second"] for point in points) > 0


@pytest.mark.soak
def test_one_that_is_killed_later_leaves_out_the_same(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, straight = tmp_path / "stage", tmp_path / "straight"
    for number, (kind, at) in enumerate([("spike", AT), ("sigkill", 22)]):
        plan(monkeypatch, kind, at, tmp_path / f"fired-{number}")
        with pytest.raises(Exception, match="times the median" if kind == "spike" else "SIGKILL"):
            group_of(1, job_in(shards, stage), tmp_path / f"group-{number}")
        assert (tmp_path / f"fired-{number}").exists()
    group_of(1, job_in(shards, stage), tmp_path / "last")
    told = job_in(shards, straight)
    Windows.read(stage).write(straight, Lease.take(straight / "checkpoints"))
    group_of(1, told, tmp_path / "straight-group")
    assert weights(straight) == weights(stage)
    assert json.loads((stage / FILE).read_text()) == last_notes(stage)["left_out"]


def last_notes(stage: Path) -> dict[str, object]:
    found = latest_good(stage / "checkpoints").found
    assert found is not None
    return found.notes


def test_if_all_that_is_left_is_left_out_the_end_is_saved() -> None:
    run = MagicMock()
    run.plan.total_steps, run.feed.global_batches.return_value = TOTAL, iter(())
    run.feed.reached.return_value = TOTAL
    train_from(TOTAL - WINDOW, run)
    run.engine.train_step.assert_not_called()
    run.feed.reached.assert_called_once_with(TOTAL - WINDOW)
    run.save.assert_called_once_with(TOTAL)
    run.finish.assert_called_once_with(TOTAL)


def losses(detector: SpikeDetector, *values: float) -> None:
    for step, value in enumerate(values, 1):
        detector.take(step, value)


def test_a_loss_is_compared_with_the_median_of_those_before() -> None:
    detector = SpikeDetector(2.0)
    losses(detector, 9.0, *[1.0] * (FEWEST - 1), 2.0)  # Not more than twice the median.
    with pytest.raises(LossSpike) as spike:
        detector.take(31, 2.001)
    assert (spike.value.step, spike.value.loss, spike.value.median) == (31, 2.001, 1.0)
    losses(detector, *[1.9] * HISTORY, 3.7)  # The level has risen slowly.
    assert len(detector.recent) == HISTORY


@pytest.mark.parametrize(("factor", "before"), [(None, FEWEST), (2.0, FEWEST - 1)])
def test_without_a_factor_or_a_past_nothing_is_a_spike(factor: float | None, before: int) -> None:
    losses(SpikeDetector(factor), *[1.0] * before, 1e9)


@pytest.mark.parametrize(
    ("checkpoints", "first"),
    [
        ([], 200),
        ([100, 150], 200),
        ([100, 200], 200),
        ([100, 250], 200),
        ([250, 280], 250),  # What has seen steps of the window is of no use.
        ([300], 300),
        ([301], 200),
    ],
)
def test_a_window_begins_where_a_checkpoint_can_be_gone_back_to(
    checkpoints: list[int], first: int
) -> None:
    assert first_left_out(300, 100, checkpoints) == first
    assert first_left_out(50, 100, []) == 0


def test_windows_may_overlap() -> None:
    windows = Windows((window(10, 20), window(15, 30), window(40, 41)))
    assert [step for step in range(50) if step in windows] == [*range(10, 30), 40]
    assert [windows.after(step) for step in (9, 10, 29, 30, 40)] == [9, 30, 30, 30, 41]
    assert Windows().after(7) == 7
    assert windows | Windows((window(15, 30), window(60, 70))) == Windows(
        (*windows.each, window(60, 70))
    )


def save(root: Path, step: int, windows: Windows) -> None:
    publish(
        root,
        step,
        lambda folder: {"w": write_file(folder / "w", [b"weights"])},
        {"left_out": windows.as_notes()},
    )


def spike(step: int) -> LossSpike:
    return LossSpike(step, 9.0, 1.0)


def test_what_was_saved_of_left_out_steps_is_not_gone_on_from(tmp_path: Path) -> None:
    """Also not after a crash between the note and the next group."""
    root, before = tmp_path / "checkpoints", Windows()
    for step in (10, 20, 30):
        save(root, step, before)
    for number, (at, first) in enumerate([(26, 20), (23, 17)]):
        known = Windows.read(tmp_path)
        found = leave_out(
            tmp_path, root, known, spike(at), reach=5, total=28, lease=Lease.take(root)
        )
        assert (found.first, found.end) == (first, [28, 27][number])
        assert Windows.read(tmp_path) == Windows((*known.each, found))
    search, windows = look_back(tmp_path, root)
    assert search.found is not None
    assert search.found.step == 10
    assert [step_of(path) for path in steps(root)] == [10]
    save(root, 20, windows)  # Trained without them, it is as good as any.
    assert [step_of(path) for path in steps(root)] == [10, 20]
    search, _ = look_back(tmp_path, root)
    assert search.found is not None
    assert search.found.step == 20


def test_the_list_is_that_of_the_newest_attempt(tmp_path: Path) -> None:
    old = Lease.take(tmp_path / "checkpoints")
    Windows((window(1, 2),)).write(tmp_path, old)
    Lease.take(tmp_path / "checkpoints")
    with pytest.raises(Superseded):
        Windows((window(3, 4),)).write(tmp_path, old)
    assert Windows.read(tmp_path).each == (window(1, 2),)


def test_an_attempt_that_is_paused_before_it_renames_does_not_change_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, check = Lease.take(tmp_path / "checkpoints"), Lease.check
    begun: list[Lease] = []

    def check_and_pause(lease: Lease) -> None:
        check(lease)
        if not begun:
            begun.append(Lease.take(tmp_path / "checkpoints"))

    monkeypatch.setattr(Lease, "check", check_and_pause)
    with pytest.raises(Superseded):
        Windows((window(3, 4),)).write(tmp_path, old)
    assert begun
    assert Windows.read(tmp_path).each == ()


@pytest.mark.parametrize("content", ["", "{}[", '[{"first": 1}]', "[1]", '{"left_out": []}'])
def test_a_damaged_list_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=rf"{FILE} is no list of windows"):
        Windows.read(tmp_path)


def test_there_is_a_limit(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    windows = Windows(tuple(window(step, step + 1) for step in range(MOST)))
    with pytest.raises(TooManySpikes, match=f"there have been {MOST} such spikes already"):
        leave_out(tmp_path, root, windows, spike(99), reach=5, total=200, lease=Lease.take(root))
    assert not (tmp_path / FILE).exists()
