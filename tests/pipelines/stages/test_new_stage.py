"""A stage from outside: a file and a record are all it takes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convnextv2.data.labels.census import Census
from convnextv2.data.writing import WriteSettings
from pipelines import cli
from pipelines.graph.kinds import KINDS
from pipelines.graph.outline import outline
from pipelines.presets import PRESETS, find_preset, load_preset
from pipelines.stages.data_conflicts import find_data_conflicts
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.pipelines.commands.user import Page, run
from tests.pipelines.stages.toy import BALANCE, RESULT, ConfigWithBalance

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("_own_signals", "_own_store")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line, and a preset that has the stage."""
    monkeypatch.setitem(KINDS, BALANCE.name, BALANCE)
    settings = {**find_preset("demo").build().model_dump(), "name": "toy", "balance": {}}
    toy = replace(
        find_preset("demo"), name="toy", build=lambda: ConfigWithBalance.model_validate(settings)
    )
    monkeypatch.setitem(PRESETS, "toy", toy)


def test_it_is_in_the_outline_of_those_who_ask_for_it() -> None:
    stages = outline(load_preset("toy"))
    assert stages["balance"] == ("write",)
    assert list(stages)[-1] == "report"
    assert "balance" in stages["report"]
    assert "balance" not in outline(load_preset("toy", ["balance=null"]))
    assert "balance" not in outline(load_preset("demo"))


def test_it_has_a_command_with_help(capsys: Capture) -> None:
    parser = cli.build_parser()
    assert "balance     say how evenly the classes are filled" in parser.format_help()
    assert run("balance", "--preset", "demo") == 1
    assert "demo has no stage 'balance'; it has pretrain, fine" in capsys.readouterr().err


def test_its_settings_are_checked_like_all_others(capsys: Capture) -> None:
    assert run("balance", "--preset", "toy", "--set", "balance.decimal=2") == 1
    assert "unknown key 'balance.decimal'; did you mean 'balance.decimals'?" in (
        capsys.readouterr().err
    )


def test_images_are_asked_for_the_labels_it_needs() -> None:
    bare: dict[Any, Census] = {split: Census(9, (), (), 9) for split in ("train", "val")}
    (problem,) = find_data_conflicts(
        load_preset("toy"), "write", {"write", "balance"}, Path("photos"), bare
    )
    assert "training images of photos have no labels, which balance would need" in problem


@pytest.mark.slow
def test_it_runs_once_and_is_on_the_report(tmp_path: Path, capsys: Capture) -> None:
    for split in ("train", "val"):
        write(Pictures(((32, 32),) * 40), tmp_path / "shards" / split, WriteSettings(mode="raw"))
    options = ["--preset", "toy", "--data", tmp_path / "shards", "--run-dir", tmp_path / "run"]

    def statuses(*words: object) -> dict[str, str]:
        capsys.readouterr()
        assert run(*words, *options, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        return {stage["name"]: stage["status"] for stage in told["stages"]}

    assert statuses("balance") == {"write": "run", "balance": "run"}
    (result,) = (tmp_path / "run/stages/balance").glob(f"*/{RESULT}")
    assert json.loads(result.read_text()) == {"balance": 0.929}
    assert statuses("balance") == {"write": "done", "balance": "done"}
    assert statuses("report") == {"write": "done", "balance": "done", "report": "run"}
    (page,) = (tmp_path / "run/stages/report").glob("*/report.html")
    assert "Balance of the classes" in Page(page).text
    again = statuses("balance", "--set", "balance.decimals=1")
    assert again == {"write": "done", "balance": "run"}
