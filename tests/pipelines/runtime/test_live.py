"""What is told while training goes on: goodput, slow workers, metrics for monitoring."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.resilience import incidents
from pipelines.runtime import live as module
from pipelines.runtime.drivers import FILE
from pipelines.runtime.events import Checkpoint, End, Event, EventLog, Point, Start
from pipelines.runtime.live import GOODPUT, INCIDENTS, METRICS, Live, SlowWorkers
from tests.pipelines.report.made_up_run import KILLED

BEGAN = 1.76e9


class Metrics:
    """Keeps what monitoring would get."""

    def __init__(self) -> None:
        self.gauges: dict[str, float] = {}
        self.counted: Counter[tuple[str, str]] = Counter()

    def set(self, name: str, value: float) -> None:
        assert name in METRICS
        self.gauges[name] = value

    def count(self, name: str, **labels: str) -> None:
        assert name in METRICS
        self.counted[name, labels["cause"]] += 1


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 100 s since the driver began, and reckoning costs no time."""
    monkeypatch.setattr(module.time, "time", lambda: BEGAN + 100)
    monkeypatch.setattr(module.time, "monotonic", lambda: 5.0)


def begun(run_dir: Path, stage: str, began: float = BEGAN, ended: float = 0.0) -> Path:
    directory = run_dir / "stages" / stage / "0123abcd"
    directory.mkdir(parents=True)
    last = f'{{"ended": {ended}}}\n' if ended else ""
    (directory / FILE).write_text(f'{{"began": {began}}}\n{last}')
    return directory


def start(hosts: tuple[str, ...] = ()) -> Start:
    return Start(step=0, time=BEGAN + 10, workers=2, total=100, hosts=hosts)


EVENTS: list[Event] = [
    start(("a", "b")),
    Point(
        step=40,
        time=BEGAN + 90,
        values={"loss": 0.5, "images_per_second": 64.0},
        seconds={"step": 70.0, "data": 10.0},
    ),
    Checkpoint(
        step=40, time=BEGAN + 95, bytes=1, written_seconds=1.0,
        seconds={"step": 74.0, "data": 10.0, "checkpoint": 1.0},
    ),
]  # fmt: skip


@pytest.mark.usefixtures("now")
def test_goodput_goes_to_the_screen_to_monitoring_and_to_tracking(tmp_path: Path) -> None:
    metrics = Metrics()
    directory = begun(tmp_path, "pretrain")
    live = Live(tmp_path, directory, "pretrain", metrics, say=lambda sentence: None)
    assert live.words == ""
    (summary,) = live.follow(EVENTS)
    assert (summary.step, summary.time) == (40, BEGAN + 95)
    # 74 s, and the 5 s since the last note.
    assert summary.values == {
        "goodput": 0.79,
        "seconds.step": 79.0,
        "seconds.set-up": 10.0,
        "seconds.data": 10.0,
        "seconds.checkpoint": 1.0,
    }
    assert live.words == "goodput 79%"
    assert metrics.gauges == {
        "convnextv2_step": 40,
        "convnextv2_loss": 0.5,
        "convnextv2_images_per_second": 64.0,
        "convnextv2_goodput_ratio": 0.79,
        "convnextv2_workers": 2,
        "convnextv2_checkpoint_step": 40,
    }
    ends = End(step=100, time=BEGAN + 100, seconds={"step": 79.0, "data": 10.0, "checkpoint": 1.0})
    assert [each.step for each in live.follow([ends])] == [100]


@pytest.mark.usefixtures("now")
def test_what_was_trained_before_counts(tmp_path: Path) -> None:
    before = begun(tmp_path, "pretrain", BEGAN - 500, BEGAN - 400)
    log = EventLog(before, active=True)
    log.write(replace(start(), time=BEGAN - 500))
    log.write(End(step=100, time=BEGAN - 400, seconds={"step": 1.0}))
    metrics = Metrics()
    live = Live(tmp_path, begun(tmp_path, "finetune"), "finetune", metrics, lambda sentence: None)
    (summary,) = live.follow(EVENTS)
    assert summary.values["goodput"] == 0.79
    assert live.words == "goodput 40%"
    assert metrics.gauges[GOODPUT] == (79 + 1) / 200


@pytest.mark.usefixtures("now")
def test_incidents_are_put_down_and_counted_once(tmp_path: Path) -> None:
    metrics = Metrics()
    live = Live(
        tmp_path, begun(tmp_path, "pretrain"), "pretrain", metrics, say=lambda sentence: None
    )
    live.note(replace(KILLED, recovered=False))
    live.note(KILLED)
    assert incidents.read(tmp_path) == [KILLED]
    assert metrics.counted == {(INCIDENTS, "killed"): 1}


@pytest.mark.usefixtures("now")
def test_a_slow_worker_is_named_on_the_screen(tmp_path: Path) -> None:
    said: list[str] = []
    live = Live(tmp_path, begun(tmp_path, "pretrain"), "pretrain", Metrics(), say=said.append)
    live.follow([start(("node-a", "node-b")), *(own(1, 0.6) for _ in range(9))])
    assert said == [
        "worker 1 on node-b is slow: data and forward pass of a step take it 0.6 s, 1.5 times the "
        "median, and the others wait for it"
    ]


def own(rank: int, seconds: float, median: float = 0.4) -> Point:
    values = {"slowest_rank": rank, "slowest_seconds": seconds, "median_seconds": median}
    return Point(step=1, values=values)


@pytest.mark.parametrize(
    ("points", "times"),
    [
        ([own(1, 0.6)] * 4, 0),
        ([own(1, 0.6)] * 5, 1),
        ([own(1, 0.6)] * 20, 1),
        # Never so slow, or not always the same one, or not in a row.
        ([own(1, 0.49)] * 20, 0),
        ([own(1, 0.6), own(0, 0.6)] * 10, 0),
        ([*[own(1, 0.6)] * 4, own(1, 0.41)] * 4, 0),
        # Slow, well again, and slow again.
        ([*[own(1, 0.6)] * 6, own(1, 0.41), *[own(1, 0.6)] * 6], 2),
        # Alone, or where it is not measured.
        ([Point(step=1, values={"loss": 0.5})] * 9, 0),
    ],
)
def test_slow_is_who_needs_longer_at_several_points_in_a_row(
    points: list[Point], times: int
) -> None:
    slow = SlowWorkers()
    assert sum(slow.look(point) is not None for point in points) == times


def test_every_metric_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "recovery.md").read_text()
    assert [name for name in METRICS if f"`ray_{name}" not in page] == []
