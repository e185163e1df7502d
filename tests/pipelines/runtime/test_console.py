"""What a person sees, on a terminal and where output is piped."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.graph import Stage, StageContext, StageResult
from pipelines.runtime.console import Screen


def place_of(name: str) -> StageContext:
    return StageContext(
        Stage(name=name, run=lambda context: {}, settings={}), Path(name), "key", {}, {}
    )


@pytest.fixture
def piped() -> Screen:
    return Screen(Console(file=io.StringIO(), width=80, soft_wrap=True))


def lines(screen: Screen) -> list[str]:
    assert isinstance(screen.console.file, io.StringIO)
    return screen.console.file.getvalue().splitlines()


def test_piped_output_has_a_line_per_quarter(piped: Screen) -> None:
    piped.stage_starts(place_of("pretrain"), "run", "it has not been run here before")
    for percent in range(101):
        piped.progress(percent / 100, f"loss {percent}")
    piped.stage_ends(StageResult(place_of("pretrain"), "run", "", 12.6))
    assert lines(piped) == [
        "pretrain starts: it has not been run here before",
        "   25%  loss 25",
        "   50%  loss 50",
        "   75%  loss 75",
        "  done in 13 s",
    ]


def test_a_leap_over_quarters_is_told_once_and_the_next_stage_counts_anew(piped: Screen) -> None:
    for name, status in (("pretrain", "resumed"), ("finetune", "run")):
        piped.stage_starts(place_of(name), status, "reason")
        for fraction in (0.1, 0.6, 0.62, 0.74, 0.8, 1.0):
            piped.progress(fraction, name)
    assert lines(piped) == [
        "pretrain goes on: reason",
        "   60%  pretrain",
        "   80%  pretrain",
        "finetune starts: reason",
        "   60%  finetune",
        "   80%  finetune",
    ]


def test_a_stage_that_was_done_takes_one_line(piped: Screen) -> None:
    piped.stage_ends(StageResult(place_of("write"), "done", "nothing it depends on has changed"))
    assert lines(piped) == ["write is done already"]


def test_names_that_look_like_markup_are_shown_as_they_are(piped: Screen) -> None:
    piped.note("skipped photos/[/b]/[red].jpg: cannot identify image file")
    piped.stage_starts(place_of("write"), "run", "changed: source [/x] → [bold]")
    assert lines(piped) == [
        "  skipped photos/[/b]/[red].jpg: cannot identify image file",
        "write starts: changed: source [/x] → [bold]",
    ]


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    screen = Screen(Console(file=io.StringIO(), force_terminal=True, width=100))
    screen.stage_starts(place_of("pretrain"), "run", "reason")
    screen.progress(0.5, "512 images/s")
    screen.stage_ends(StageResult(place_of("pretrain"), "run", "", 3.0))
    assert isinstance(screen.console.file, io.StringIO)
    shown = screen.console.file.getvalue()
    assert "512 images/s" in shown
    assert "50%" in shown
    erase_line, show_cursor = "\x1b[2K", "\x1b[?25h"
    assert erase_line in shown[shown.rindex("512 images/s") :]
    assert shown.count(show_cursor) == 1
    screen.progress(0.9, "after the bar")
    screen.stop()
    assert shown.count(show_cursor) == screen.console.file.getvalue().count(show_cursor)
