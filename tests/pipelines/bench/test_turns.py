"""Contenders take turns; a process's figures are its last line, and its failure has its words."""

import pytest

from pipelines.bench.processes import figures_of
from pipelines.bench.turns import median_ratio, take_turns


def test_contenders_take_turns_and_the_first_ones_do_not_count() -> None:
    calls: list[str] = []

    def contender(name: str) -> int:
        calls.append(name)
        return len(calls)

    table = take_turns({"a": lambda: contender("a"), "b": lambda: contender("b")}, 2, warm_up=3)
    assert calls == ["a", "b"] * 5
    assert table == {"a": [7, 9], "b": [8, 10]}


def test_a_ratio_is_the_median_of_the_turns_and_not_the_ratio_of_medians() -> None:
    assert median_ratio([10.0, 200.0, 30.0], [5.0, 50.0, 10.0]) == 3
    with pytest.raises(ValueError, match="shorter"):
        median_ratio([1.0, 2.0], [1.0])


def test_figures_are_the_last_line_of_a_process_with_the_given_environment() -> None:
    code = "import os; print('noise'); print('{\"one\": ' + os.environ['FIGURE'] + '}')"
    assert figures_of("it", "-c", code, environment={"FIGURE": "1.5"}) == {"one": 1.5}
    with pytest.raises(RuntimeError, match="atto: no memory left"):
        figures_of("atto", "-c", "import sys; sys.exit('no memory left')")
