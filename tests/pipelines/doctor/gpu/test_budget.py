"""The check keeps to its time, and every part gets its share of it, by a clock that is turned."""

import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipelines.doctor.gpu import __main__ as check
from pipelines.doctor.gpu.parts import Outcome, Part, Row, Setting
from tests.pipelines.doctor.gpu.made_up_parts import good

KILL = 1.5
"""Seconds that ending a part's process takes in these tests."""


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


def limits(
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[Part, ...],
    seconds: float,
    needs: Mapping[str, float],
    kill: float = 0.0,
    imports: float = 0.0,
) -> tuple[dict[str, float], float]:
    """Run parts that need so many seconds (endless, if not named); their limits, and the sum."""
    clock, found = Clock(), dict[str, float]()

    def run(part: Part, setting: Setting, limit: float, tell: Callable[[Row], None]) -> Outcome:
        found[part.name] = limit
        need = needs.get(part.name, float("inf"))
        taken = need if need <= limit else limit + kill
        clock.turn(taken)
        return Outcome("ok" if need <= limit else "cut", taken, [])

    monkeypatch.setattr(check, "time", clock)
    monkeypatch.setattr(check, "run_part", run)
    monkeypatch.setattr(check, "prepare", lambda: clock.turn(imports))
    begin = clock.now
    check.run_all(parts, Setting(), seconds, lambda outcomes: None)
    return found, clock.now - begin


def test_five_minutes_are_all_that_the_check_takes() -> None:
    assert check._parse([]).seconds == check.SECONDS == 300
    assert sum(part.weight for part in check.PARTS) == check.SECONDS


def test_parts_that_use_all_their_time_take_none_from_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, total = limits(monkeypatch, check.PARTS, check.SECONDS, {})
    assert found == pytest.approx({part.name: part.weight for part in check.PARTS})
    assert total == pytest.approx(check.SECONDS)


def test_what_a_part_leaves_is_shared_among_all_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = (Part("a", 10, good), Part("b", 20, good), Part("c", 10, good), Part("d", 10, good))
    found, total = limits(monkeypatch, parts, 100, {"a": 8, "c": 1})
    # b gets half of 92; of the 46 that are left c gets half and takes 1; d gets the other 45.
    assert found == pytest.approx({"a": 20, "b": 46, "c": 23, "d": 45})
    assert total == pytest.approx(100)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("seconds", [60.0, 300.0])
def test_no_part_is_starved_and_the_time_is_kept(
    seed: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    needs = {part.name: draw.expovariate(1 / part.weight) for part in check.PARTS}
    found, total = limits(monkeypatch, check.PARTS, seconds, needs)
    assert total <= seconds + 1e-6
    scale = seconds / check.SECONDS
    least = {part.name: scale * part.weight for part in check.PARTS}
    assert all(limit >= least[name] - 1e-6 for name, limit in found.items())
    left_out = least.keys() - found.keys()
    assert all(least[name] < check.LEAST_SECONDS for name in left_out)


def test_time_to_end_a_part_is_taken_from_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    _, total = limits(monkeypatch, check.PARTS, 300, {}, kill=KILL)
    assert total <= 300 + KILL + 1e-6, "only the last part's own end comes on top"


def test_imports_are_shared_by_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    found, total = limits(monkeypatch, check.PARTS, 300, {}, imports=60)
    assert found == pytest.approx({part.name: 0.8 * part.weight for part in check.PARTS})
    assert total == pytest.approx(300)


def test_the_documentation_has_every_part_and_its_share() -> None:
    text = (Path(__file__).parents[4] / "docs" / "gpu.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", text, re.MULTILINE)
    assert [(name, float(seconds)) for name, seconds in rows] == [
        (part.name, part.weight) for part in check.PARTS
    ]
