"""The benchmark of faults: the recovery in what Ray Train's workers note, the table, one fault."""

from pathlib import Path

import pytest

from pipelines.bench.faults.__main__ import measure, parser
from pipelines.bench.faults.marks import STEP, Mark, append, read, recovery_of
from pipelines.bench.faults.recovery import COLUMNS, Recovery, Row, table

FAULT = 100.0


def group(pid: int, start: float, step: int) -> list[Mark]:
    """What two workers note from the start of their processes to their first new step."""
    names = ("process", "process group", "imports", "engine", "weights", "first batch", STEP)
    return [
        Mark(
            name,
            rank=-1 if name == "process" else rank,
            step=step + 1 if name == STEP else step,
            time=start + number + rank / 2,
            pid=pid + rank,
        )
        for number, name in enumerate(names)
        for rank in (0, 1)
    ]


BEFORE = [*group(10, 50.0, 0), Mark(STEP, rank=0, step=27, time=99.0, pid=10)]
NOTICED = [Mark("detection", time=102.0, pid=1), Mark("teardown", time=103.0, pid=1)]


def test_phases_are_those_of_the_slower_worker_and_add_up(tmp_path: Path) -> None:
    for mark in [*BEFORE, *NOTICED, *group(20, 105.0, 20)]:
        append(tmp_path, mark)
    found = recovery_of(read(tmp_path), FAULT)
    assert found is not None
    assert found.seconds == {
        "detection": 2.0,
        "teardown": 1.0,
        "process": 2.5,
        "process group": 1.0,
        "imports": 1.0,
        "engine": 1.0,
        "weights": 1.0,
        "first batch": 1.0,
        "first step": 1.0,
    }
    assert found.total == sum(found.seconds.values()) == 11.5
    assert found.after_detection == 9.5
    assert found.lost_steps == 7


def test_a_recovery_is_over_when_all_have_done_a_step() -> None:
    unfinished = [mark for mark in group(20, 105.0, 20) if (mark.name, mark.rank) != (STEP, 1)]
    assert recovery_of([*BEFORE, *NOTICED], FAULT) is None
    assert recovery_of([*BEFORE, *NOTICED, *unfinished], FAULT) is None


def test_a_group_that_fails_at_its_start_belongs_to_the_recovery() -> None:
    failed = [mark for mark in group(20, 105.0, 20) if mark.name != STEP]
    found = recovery_of([*BEFORE, *NOTICED, *failed, *group(30, 150.0, 20)], FAULT)
    assert found is not None
    assert found.total == 56.5
    assert found.seconds["process"] == 47.5


def test_workers_that_left_on_notice_stood_still_from_their_last_step_on() -> None:
    last = Mark(STEP, rank=0, step=40, time=104.0, pid=10)
    found = recovery_of([*BEFORE, last, NOTICED[1], *group(20, 105.0, 30)], FAULT)
    assert found == Recovery(total=7.5, lost_steps=10)


def test_the_table_has_medians_and_ranges_and_says_what_was_given_up() -> None:
    turns = [Recovery(total, lost, {"detection": 0.5}) for total, lost in ((2, 9), (3, 10), (7, 8))]
    rows = [Row("killed", "a", turns, 60.0), Row("stopped", "b", [Recovery(None)], 60.0)]
    header, _, first, second = table(rows).splitlines()
    cells = dict(zip(COLUMNS, (cell.strip() for cell in first.split("|")[1:-1]), strict=True))
    assert header.count("|") == second.count("|") == len(COLUMNS) + 1
    assert (cells["detection"], cells["engine"]) == ("0.5", "")
    assert cells["all (s)"] == "3.0 (2.0-7.0)"
    assert cells["from detection (s)"] == "2.5 (1.5-6.5)"
    assert (cells["steps lost"], cells["turns"]) == ("9 (8-10)", "3")
    assert "not within 60 s" in second


@pytest.mark.soak
def test_a_worker_that_is_killed_is_measured() -> None:
    words = ["--turns", "1", "--faults", "worker killed", "--systems", "no spare", "--json"]
    [row] = measure(parser().parse_args(words))
    [turn] = row.turns
    assert turn.total is not None
    assert turn.total == pytest.approx(sum(turn.seconds.values()))
    assert {"detection", "imports", "engine", "first batch", "first step"} <= set(turn.seconds)
    assert turn.lost_steps > 0
