"""Faults and what followed them are matched, and what should have followed and did not is told."""

import json
from pathlib import Path

import pytest

from cluster.resilience import incidents
from cluster.resilience.incidents import Incident
from pipelines.faults.disturb import Disturbed
from pipelines.faults.nodes import Acted
from pipelines.faults.outcome import Outcome, outcomes
from pipelines.faults.plan import Moment
from pipelines.faults.schedule import Fired, Scheduled
from pipelines.runtime.events import EVENTS_FILE, Event, Start, line_of
from pipelines.training.anomalies.nonfinite import FOLDER as NONFINITE
from pipelines.training.data.sample_log import FOLDER

NEW_GROUP = "a new group went on after step 100, 0 steps were lost"
PHASES = {"detection": 0.5, "teardown": 0.1, "placement": 0.0, "process group": 1.0}


def fault(number: int, what: str) -> Scheduled:
    return Scheduled(number, what, Moment("step", 10 * number), 1, None, Path("/gone"))


def fired(time: float) -> Fired:
    return Fired(rank=1, step=int(time), time=time, host="node-2", pid=1)


def incident(cause: str, time: float, *, recovered: bool = True, **changes: object) -> Incident:
    fields: dict[str, object] = {
        "id": f"pretrain-{time}",
        "time": time,
        "stage": "pretrain",
        "generation": 1,
        "cause": cause,
        "rank": 1,
        "node": "abc",
        "host": "127.0.0.2",
        "phase": "step",
        "step": int(time),
        "error": f"a {cause}",
        "workers": (2, 2),
        "seconds": PHASES,
        "recovered": recovered,
    }
    return Incident(**{**fields, **changes})  # type: ignore[arg-type]


def judged(
    folder: Path,
    faults: list[Scheduled],
    disturbed: Disturbed,
    happened: list[Incident],
    events: list[Event] | None = None,
) -> tuple[list[Outcome], list[Incident]]:
    stage = folder / "stages" / "pretrain" / "key"
    stage.mkdir(parents=True, exist_ok=True)
    (stage / EVENTS_FILE).write_text("".join(line_of(event) + "\n" for event in events or []))
    for each in happened:
        incidents.append(folder, each)
    return outcomes(faults, disturbed, folder)


def test_each_fault_has_the_incident_of_its_cause(tmp_path: Path) -> None:
    faults = [fault(1, "kill worker"), fault(2, "hang"), fault(3, "kill worker")]
    # The second fires first; its incident counts from the beginning of the phase.
    disturbed = Disturbed(0, {1: fired(120), 2: fired(100), 3: fired(130)})
    happened = [incident("hang", 90), incident("killed", 120), incident("killed", 131)]
    found, unexplained = judged(tmp_path, faults, disturbed, happened)
    assert [each.incident for each in found] == [happened[1], happened[0], happened[2]]
    assert [each.problem for each in found] == ["", "", ""]
    assert found[1].followed == "a hang"
    assert unexplained == []


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("spike", "spike"),
        ("cut link", "node"),
        ("cut link to node", "node"),
        ("cut link from node", "node"),
        ("cut link for 20 s", "node"),
    ],
)
def test_links_and_spikes_have_incidents(what: str, cause: str, tmp_path: Path) -> None:
    acted = {} if what == "spike" else {1: Acted(100.0, "node-2", had_worker=True)}
    happened = [incident(cause, 110)]
    disturbed = Disturbed(0, {1: fired(100)}, acted)
    [found], unexplained = judged(tmp_path, [fault(1, what)], disturbed, happened)
    assert (found.incident, found.problem, unexplained) == (happened[0], "", [])
    [missed], _ = judged(tmp_path / "none", [fault(1, what)], disturbed, [])
    assert missed.problem == f"no incident of cause {cause!r} followed"


def test_what_did_not_follow_is_told(tmp_path: Path) -> None:
    names = ["kill worker", "raise", "nan", "kill driver", "hang"]
    faults = [fault(number, what) for number, what in enumerate(names, 1)]
    times = {1: fired(100), 2: fired(200), 3: fired(300), 4: fired(400)}
    disturbed = Disturbed(0, times, {4: Acted(400.0)})
    happened = [
        incident("node", 100),
        incident("killed", 170),  # Of the right cause, but too late.
        incident("error", 200, recovered=False),
    ]
    found, unexplained = judged(tmp_path, faults, disturbed, happened)
    assert [each.problem for each in found] == [
        "no incident of cause 'killed' followed",
        "training has not gone on",
        "step 301 was not left out",
        "no new group of workers started",
        "it has not fired",
    ]
    assert unexplained == happened[:2]


def test_an_incident_that_another_fault_interrupts_need_not_end(tmp_path: Path) -> None:
    faults = [fault(1, "kill worker"), fault(2, "kill worker")]
    happened = [incident("killed", 100, recovered=False), incident("killed", 101)]
    found, _ = judged(tmp_path, faults, Disturbed(0, {1: fired(100), 2: fired(101)}), happened)
    assert [each.problem for each in found] == ["", ""]


def test_a_record_that_lacks_a_phase_is_not_complete(tmp_path: Path) -> None:
    happened = [incident("killed", 100, seconds={"detection": 1.0, "teardown": 0.1})]
    found, _ = judged(tmp_path, [fault(1, "kill worker")], Disturbed(0, {1: fired(100)}), happened)
    assert found[0].problem == "its incident lacks the seconds of placement, process group"


def test_what_could_not_be_done(tmp_path: Path) -> None:
    acted = Acted(100.0, "node-2", problem="node-2 was not there any more")
    disturbed = Disturbed(0, {1: fired(100)}, {1: acted})
    [found], _ = judged(tmp_path, [fault(1, "kill raylet")], disturbed, [])
    assert found.problem == "node-2 was not there any more"


@pytest.mark.parametrize(
    ("what", "acted", "followed"),
    [
        ("nan", None, "step 101 was left out, on all workers"),
        ("kill raylet", Acted(100.0, "node-4", had_worker=False), "training went on"),
        ("freeze raylet", Acted(100.0, "node-2", had_worker=True), "training went on"),
        (
            "preempt node",
            Acted(100.0, "node-2", True),
            NEW_GROUP,
        ),
        ("kill driver", Acted(100.0), NEW_GROUP),
        ("slow link", Acted(100.0, "node-2", had_worker=True), "training went on"),
        ("cut link for 2 s", Acted(100.0, "node-2", had_worker=True), "training went on"),
        ("cut link", Acted(100.0, "node-4", had_worker=False), "training went on"),
    ],
)
def test_without_an_incident(what: str, acted: Acted | None, followed: str, tmp_path: Path) -> None:
    left_out = tmp_path / "stages/pretrain/key" / NONFINITE / "step-101-rank-1.json"
    left_out.parent.mkdir(parents=True)
    left_out.touch()
    events: list[Event] = [Start(step=100, time=110.0, workers=2, total=200)]
    disturbed = Disturbed(0, {1: fired(100)}, {} if acted is None else {1: acted})
    [found], unexplained = judged(tmp_path, [fault(1, what)], disturbed, [], events)
    assert (found.followed, found.problem, unexplained) == (followed, "", [])


@pytest.mark.parametrize(
    ("what", "problem"),
    [("preempt node", NEW_GROUP.replace(" 0 ", " 2 ")), ("kill driver", "")],
)
def test_a_preemption_costs_no_step(what: str, problem: str, tmp_path: Path) -> None:
    noted = tmp_path / "stages/pretrain/key" / FOLDER / "generation-1-rank-0.jsonl"
    noted.parent.mkdir(parents=True)
    lines = [{"step": step, "samples": 8, "digest": 1} for step in range(102)]
    noted.write_text("".join(json.dumps(line) + "\n" for line in [{"settings": {}}, *lines]))
    events: list[Event] = [Start(step=100, time=110.0, workers=2, total=200, generation=2)]
    disturbed = Disturbed(0, {1: fired(100)}, {1: Acted(100.0, "node-2", had_worker=True)})
    [found], _ = judged(tmp_path, [fault(1, what)], disturbed, [], events)
    assert found.problem == problem


def test_the_marker_says_when_and_where_it_fired(tmp_path: Path) -> None:
    marker = tmp_path / "01"
    noted = {"kind": "raise", "rank": 1, "step": 7, "phase": "step", "time": 5.0}
    scheduled = Scheduled(1, "raise", Moment("step", 7), 1, None, marker)
    assert scheduled.fired() is None
    marker.write_text("")
    assert scheduled.fired() is None
    marker.write_text(json.dumps({**noted, "host": "n", "pid": 3}))
    assert scheduled.fired() == Fired(1, 7, 5.0, "n", 3)
