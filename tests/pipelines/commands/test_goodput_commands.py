"""`convnextv2 incidents` and `convnextv2 goodput` on made-up run folders."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.resilience import incidents
from cluster.resilience.incidents import Incident
from pipelines.runtime import drivers
from pipelines.runtime.events import End, EventLog, Point, Start
from tests.pipelines.commands.user import run

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("_own_signals")
KILLED = Incident(
    id="pretrain-1",
    time=1.76e9 + 40,
    stage="pretrain",
    generation=1,
    cause="killed",
    rank=3,
    node="node",
    host="10.0.0.7",
    phase="step",
    step=25,
    error="killed by SIGKILL",
    workers=(4, 0),
    seconds={"detection": 0.5},
)
MENDED = replace(
    KILLED,
    workers=(4, 4),
    lost_steps=5,
    recovered=True,
    seconds={"detection": 0.5, "teardown": 1.0, "first step": 2.5},
)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run folder in which one worker was killed: 30 of 60 s are productive steps."""
    stage = tmp_path / "stages" / "pretrain" / "0123abcd"
    stage.mkdir(parents=True)
    began = 1.76e9
    (stage / drivers.FILE).write_text(f'{{"began": {began}}}\n{{"ended": {began + 60}}}\n')
    log = EventLog(stage, active=True)
    log.write(Start(step=0, time=began + 10, workers=4, total=30))
    log.write(Point(step=20, time=began + 30, values={}, seconds={"step": 15.0, "data": 5.0}))
    log.write(Start(step=20, time=began + 44, workers=4, total=30))
    log.write(End(step=30, time=began + 60, seconds={"step": 15.0}))
    incidents.append(tmp_path, KILLED)
    incidents.append(tmp_path, MENDED)
    return tmp_path


@pytest.mark.parametrize("command", ["incidents", "goodput"])
def test_a_folder_that_is_none_is_refused(command: str, tmp_path: Path, capsys: Capture) -> None:
    assert run(command, tmp_path / "nowhere") == 1
    said = capsys.readouterr().err
    assert "nowhere is no run folder" in said
    assert "such as runs/demo" in said


@pytest.mark.parametrize(
    ("command", "words"),
    [("incidents", "{} has had no incident\n"), ("goodput", "nothing was trained in {}\n")],
)
def test_a_run_without_either(command: str, words: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "stages").mkdir()
    assert run(command, tmp_path) == 0
    assert capsys.readouterr().out == words.format(tmp_path)


def test_incidents_are_listed_once_with_what_they_cost(trained: Path, capsys: Capture) -> None:
    assert run("incidents", trained) == 0
    _, row, error, phases = capsys.readouterr().out.splitlines()
    assert re.search(r"pretrain +killed +3 +10\.0\.0\.7 +step +25 +5 +4\.0 s$", row)
    assert error.strip() == "killed by SIGKILL"
    assert phases.strip() == "seconds: detection 0.5, teardown 1.0, first step 2.5"
    assert run("incidents", trained, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["lost_steps"], found["downtime"], found["workers"]) == (5, 4.0, [4, 4])


def test_an_incident_that_is_not_over_says_so(trained: Path, capsys: Capture) -> None:
    # Another driver's first group: it has the same id.
    incidents.append(trained, replace(KILLED, time=KILLED.time + 3600, step=-1))
    assert run("incidents", trained) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("20")]
    assert len(rows) == 2
    assert rows[1].endswith("not recovered")
    assert re.search(r"step +- +\? ", rows[1])


def test_goodput_is_told_by_part_and_by_group(trained: Path, capsys: Capture) -> None:
    assert run("goodput", trained) == 0
    parts, groups = (text.splitlines() for text in capsys.readouterr().out.split("\n\n"))
    cells = dict(re.split(r"  +", line, maxsplit=1) for line in parts[1:])
    assert cells["goodput"] == "50.0%"
    assert cells["productive steps"].split() == ["30.0", "s", "50.0%"]
    assert cells["lost steps"].split() == ["10.0", "s", "16.7%"]
    assert cells["wall time"] == "60.0 s"
    assert [re.split(r"  +", line)[4:] for line in groups[1:]] == [
        ["0-25", "5", "40.0 s", "37.5%", "killed"],
        ["20-30", "0", "20.0 s", "75.0%", "-"],
    ]


def test_goodput_as_json_adds_up(trained: Path, capsys: Capture) -> None:
    assert run("goodput", trained, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"]["goodput"] == 0.5
    (stage,) = found["stages"]
    assert sum(stage["seconds"].values()) == stage["wall"] == found["run"]["wall"] == 60.0
    assert [group["cause"] for group in stage["groups"]] == ["killed", ""]
