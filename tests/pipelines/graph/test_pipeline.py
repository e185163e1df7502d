"""Stages by content: once, resumed, or again with the reason."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.graph import (
    Outputs,
    Pipeline,
    Stage,
    StageContext,
    hash_files,
    needed_for,
)
from pipelines.graph.keys import installed_sources
from tests.pipelines.graph.kitchen import Kitchen, flip, only, snapshot


def test_once_and_never_again(kitchen: Kitchen) -> None:
    assert {status for status, _ in kitchen.run().values()} == {"run"}
    assert {status for status, _ in kitchen.run().values()} == {"done"}
    assert kitchen.runs == []


def test_what_a_stage_needs() -> None:
    depends_on = {"bread": (), "butter": (), "toast": ("bread",), "plate": ("toast",)}
    assert needed_for("plate", depends_on) == ["bread", "toast", "plate"]
    with pytest.raises(ValueError, match="unknown stage 'jam'; there are bread, butter, toast, pl"):
        needed_for("jam", depends_on)


def test_a_change_redoes_the_stage_and_those_behind_it_and_says_why(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.flour = 2
    depends_on = kitchen.run()
    assert kitchen.runs == ["bread", "toast"]
    assert depends_on["bread"] == ("run", "changed: flour 1 → 2")
    assert depends_on["toast"] == ("run", "changed: bread")
    kitchen.flour = 1
    assert {status for status, _ in kitchen.run().values()} == {"done"}


def test_half_done_is_resumed_in_its_own_folder(kitchen: Kitchen) -> None:
    kitchen.fail_in = "toast"
    with pytest.raises(OSError, match="no gas"):
        kitchen.run()
    kitchen.fail_in = ""
    assert kitchen.run()["toast"] == ("resumed", "it was left half done")
    assert kitchen.runs == ["toast"]
    (steps,) = kitchen.root.glob("stages/toast/*/steps")
    assert steps.read_text() == "step\nstep\n"


def test_a_survey_says_what_is_there_and_touches_nothing(kitchen: Kitchen) -> None:
    assert kitchen.pipeline().survey().missing == {
        "bread": "it has not been run here before",
        "butter": "it has not been run here before",
        "toast": "it needs bread",
    }
    assert not (kitchen.root / "stages").exists()
    kitchen.fail_in = "toast"
    with pytest.raises(OSError, match="no gas"):
        kitchen.run()
    flip(only(kitchen.root, "stages/butter/*/out"))
    before = snapshot(kitchen.root)
    survey = kitchen.pipeline().survey()
    assert list(survey.done) == ["bread"]
    assert list(survey.half_done) == ["toast"]
    assert survey.missing == {
        "butter": "out has changed since it was written (sha256 differs)",
        "toast": "it is half done",
    }
    assert snapshot(kitchen.root) == before


def test_outputs_are_looked_at_whenever_they_were_made(tmp_path: Path) -> None:
    looked: list[str] = []

    def refuse(context: StageContext) -> None:
        looked.append((context.directory / "out").read_text())
        raise ValueError("it is burnt")

    one_stage(tmp_path, {}).run()
    (stage,) = one_stage(tmp_path, {}).stages
    pipeline = Pipeline(tmp_path, [dataclasses.replace(stage, check=refuse)])
    with pytest.raises(ValueError, match="burnt"):
        pipeline.run()
    assert looked == ["same"]
    assert pipeline.stage_results == []


def one_stage(
    root: Path, settings: dict[str, Any], code: tuple[Callable[..., object], ...] = ()
) -> Pipeline:
    def run(context: StageContext) -> Outputs:
        (context.directory / "out").write_text("same")
        return hash_files(context.directory, "out")

    return Pipeline(root, [Stage(name="stage", run=run, settings=settings, code=code)])


def test_the_reason_names_every_changed_key_as_far_as_they_go(tmp_path: Path) -> None:
    before = {"a": {"x": 1, "y": 2}, "b": (0.9, 0.95), "gone": True}
    one_stage(tmp_path, before).run()
    (result,) = one_stage(tmp_path, {**before, "b": (0.9, 0.99), "gone": None}).run()
    assert result.reason == "changed: b [0.9, 0.95] → [0.9, 0.99], gone True → None"
    (result,) = one_stage(tmp_path, {**before, "a": {"x": 3, "z": 4}}).run()
    # Compared with the run before this one.
    assert result.reason == (
        "changed: a.x 1 → 3, a.y 2 → None, a.z None → 4, b [0.9, 0.99] → [0.9, 0.95] …"
    )


def test_a_change_of_the_code_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "made_up_code"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "deep.py").write_text("ANSWER = 41\n")
    (package / "top.py").write_text("from made_up_code.deep import ANSWER\ndef f(): ANSWER\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("made_up_code.top").f

    def run() -> tuple[str, str]:
        installed_sources.cache_clear()  # As in the next process.
        (result,) = one_stage(tmp_path / "run", {}, (function,)).run()
        return result.status, result.reason

    assert run()[0] == "run"
    assert run()[0] == "done"
    (package / "deep.py").write_text("ANSWER = 42\n")
    assert run() == ("run", "changed: the code")
