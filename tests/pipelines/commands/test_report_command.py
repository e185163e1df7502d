"""`convnextv2 report`: a page of what is there, which says what is not; nothing is trained."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from convnextv2.data.writing import WriteSettings
from pipelines import cli
from pipelines.graph import Pipeline, StageContext
from pipelines.presets import load_preset
from pipelines.runtime.console import Screen
from pipelines.runtime.events import EventLog, Point, Start
from pipelines.runtime.session import Session
from pipelines.stages import build_stages, stages_of_report
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.pipelines.commands.user import Page, run

Capture = pytest.CaptureFixture[str]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_own_signals", "_own_store")]
CONFIG = load_preset(
    "demo",
    ["pretrain.train_images=32", "pretrain.global_batch_size=16", "pretrain.micro_batch_size=8"],
)
ALL = "convnextv2 run demo --data /photos"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished shards, train/ and val/."""
    root = tmp_path_factory.mktemp("shards")
    for split in ("train", "val"):
        write(Pictures(((32, 32),) * 40), root / split, WriteSettings(mode="raw"))
    return root


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """In a new run folder, without workers."""
    monkeypatch.setattr(Session, "run_workers", no_workers)
    with Session(CONFIG, tmp_path / "run", Screen(Console(quiet=True))) as session:
        yield session


def no_workers(*_: object) -> NoReturn:
    raise AssertionError("the report asked for workers")


def report(shards: Path, session: Session) -> tuple[Page, list[str]]:
    """The page, and the stages that are there."""
    stages = stages_of_report(CONFIG, shards, session, ["convnextv2", "report"], whole_command=ALL)
    *_, result = Pipeline(session.run_dir, stages).run()
    return Page(result.context.directory / "report.html"), [stage.name for stage in stages]


def write_and_half_of(shards: Path, session: Session, losses: int) -> None:
    """Leave a run folder with data, and pretraining that ended after some points."""

    def begin(context: StageContext) -> NoReturn:
        event_log = EventLog(context.directory, active=True)
        event_log.write(Start(step=0, workers=1, total=8))
        for step in range(losses):
            values = {"loss": 1 / (step + 1), "lr": 1.0, "images": 16 * step}
            event_log.write(Point(step=step, values=values))
        raise KeyboardInterrupt

    data, pretrain = build_stages(CONFIG, shards, session, [], {"write", "pretrain"})
    with pytest.raises(KeyboardInterrupt):
        Pipeline(session.run_dir, [data, dataclasses.replace(pretrain, run=begin)]).run()


def test_a_half_done_run_has_curves_and_says_what_is_missing(
    shards: Path, session: Session
) -> None:
    write_and_half_of(shards, session, losses=3)
    page, stages = report(shards, session)
    assert stages == ["write", "report"]
    words = " ".join(page.text.split())
    assert "Not done yet" in words
    assert "Pretrainingit is half done" in words
    assert "Fine-tuningit needs pretrain" in words
    assert "Fine-tuning from scratchit has not been run here before" in words
    assert "Evaluationit needs finetune" in words
    assert ALL in words
    assert "Pretraining loss" in words
    first = sorted(session.run_dir.glob("stages/report/*/report.html"))

    # The same again is done already; when training has gone on there is a new page.
    report(shards, session)
    assert sorted(session.run_dir.glob("stages/report/*/report.html")) == first
    write_and_half_of(shards, session, losses=5)
    report(shards, session)
    assert len(list(session.run_dir.glob("stages/report/*/report.html"))) == 2


def test_nothing_is_set_aside_or_made(shards: Path, session: Session) -> None:
    write_and_half_of(shards, session, losses=1)
    (manifest,) = session.run_dir.glob("stages/write/*/COMPLETE.json")
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"write: COMPLETE\.json cannot be read"):
        report(shards, session)
    assert manifest.read_text() == "{"
    assert not list(session.run_dir.glob("stages/report"))


def test_where_nothing_is_there_it_says_what_would_make_it(
    shards: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "run").mkdir()
    words = ["report", "--preset", "demo", "--data", shards, "--run-dir", tmp_path / "run"]
    assert run(*words, "--set", "seed=7") == 1
    assert capsys.readouterr().err.endswith(
        f"error: there is nothing to report of demo in {tmp_path}/run:\n"
        "  write: it has not been run here before\n"
        "  pretrain: it needs write\n"
        "  finetune: it needs write, pretrain\n"
        "  finetune-scratch: it needs write\n"
        "  evaluate: it needs write, finetune\n"
        "  evaluate-scratch: it needs write, finetune-scratch\n"
        f"This makes it all: convnextv2 run demo --data {shards} --run-dir {tmp_path}/run "
        "--set seed=7\n"
    )
    assert not (tmp_path / "run" / "stages").exists()


def test_it_redoes_no_other_stage(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run").mkdir()
    words = ["report", "--preset", "demo", "--data", shards, "--run-dir", tmp_path / "run"]
    assert run(*words, "--rerun", "pretrain") == 1
    assert "--rerun pretrain: this command has no stages but report" in capsys.readouterr().err


def test_the_command_that_makes_the_rest_parses() -> None:
    words = ["report", "--preset", "imagenet1k-nano", "--data", "my photos", "--set", "seed=3"]
    words += ["--set", "pretrain.duration=3 epochs", "--run-dir", "out", "--cache", "/nvme"]
    whole = cli._whole_command(cli.build_parser().parse_args(words))
    assert whole == (
        "convnextv2 run imagenet1k-nano --data 'my photos' --cache /nvme --run-dir out "
        "--set seed=3 --set 'pretrain.duration=3 epochs'"
    )
