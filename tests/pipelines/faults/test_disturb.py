"""What the second of two runs takes over from the first, which of them is undisturbed."""

import json
import subprocess
from pathlib import Path

import pytest

from pipelines.faults.disturb import Runner
from pipelines.faults.plan import FaultPlan, Moment
from pipelines.faults.schedule import Scheduled
from pipelines.faults.tiny import tiny
from pipelines.graph.complete import COMPLETE, hash_files, mark_complete
from pipelines.runtime.events import EVENTS_FILE
from pipelines.training.anomalies import spikes


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Its drivers end at once, and have done nothing."""

    def start(runner: Runner, name: str, faults: object) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["true"])

    monkeypatch.setattr(Runner, "_start", start)
    return Runner(FaultPlan(), tiny(), tmp_path, None, say=lambda sentence: None)


def earlier(run_dir: Path) -> None:
    """A run with shards, and a training that has left steps out."""
    shards, trained = run_dir / "stages/write/key", run_dir / "stages/pretrain/key"
    for stage in (shards, trained):
        stage.mkdir(parents=True)
        (stage / "made").write_text("here")
        mark_complete(stage, hash_files(stage, "made"), {}, 1.0, [])
    (trained / EVENTS_FILE).touch()
    window = spikes.Window(first=10, end=20, step=16, loss=9.0, median=1.0)
    (trained / spikes.FILE).write_text(json.dumps(spikes.Windows((window,)).as_notes()))


@pytest.mark.parametrize("later", ["undisturbed", "disturbed"])
def test_shards_and_what_is_left_out_are_the_same_in_both_runs(
    later: str, runner: Runner, tmp_path: Path
) -> None:
    other = {"undisturbed": "disturbed", "disturbed": "undisturbed"}[later]
    earlier(tmp_path / other)
    marker = tmp_path / "01-nan"
    marker.touch()
    nan = Scheduled(1, "nan", Moment("step", 5), 0, None, marker)
    if later == "undisturbed":
        runner.undisturbed([nan])
    else:
        assert runner.disturbed([nan]).code == 0
    stages = tmp_path / later / "stages"
    assert {path.name for path in (stages / "write/key").iterdir()} == {COMPLETE, "made"}
    # Trained anew, with what is left out known from the start.
    assert [path.name for path in (stages / "pretrain/key").iterdir()] == [spikes.FILE]
    assert spikes.Windows.read(stages / "pretrain/key") == spikes.Windows.read(
        tmp_path / other / "stages/pretrain/key"
    )
    # What has fired in the undisturbed run is to be seen to fire in the disturbed one.
    assert marker.exists() == (later == "undisturbed")
