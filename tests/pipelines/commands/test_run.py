"""What a run says at its end."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.commands import run
from pipelines.commands.run import Outcome, Request, closing_words, run_pipeline
from pipelines.config.resolve import resolve_file
from pipelines.graph import Stage, StageContext, StageResult
from pipelines.presets import load_preset
from pipelines.results import Result, write_result
from pipelines.results.classification import accuracies
from pipelines.runtime.events import EventLog, Point

RESULT = Result(metrics=accuracies(500, 750, 1000))
BETTER = Result(metrics=accuracies(562.5, 750, 1000), ema=RESULT)


def outcome(folder: Path, stages: dict[str, Result | None]) -> Outcome:
    results = []
    for name, result in stages.items():
        (folder / name).mkdir()
        if result is not None:
            write_result(folder / name, result)
        context = StageContext(
            Stage(name=name, run=lambda context: {}, settings={}), folder / name, "", {}, {}
        )
        results.append(StageResult(context, "run", "it has not been run here before", 1.0))
    return Outcome(folder, "sqlite:///x.db", folder / "driver.log", results)


def said(outcome: Outcome) -> list[list[str]]:
    """Rows of the table, cell by cell, as on a terminal of 80 columns."""
    text = io.StringIO()
    Console(file=text, width=80, soft_wrap=True, highlight=False).print(closing_words(outcome))
    rows = [line.strip().split("  ") for line in text.getvalue().splitlines()]
    return [[cell.strip() for cell in row if cell.strip()] for row in rows]


def test_a_run_folder_has_the_settings_of_the_last_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_stages", lambda request, session, screen: [])
    for seed in (1, 2):
        config = load_preset("demo", [f"seed={seed}"])
        run_pipeline(Request(config=config, run_dir=tmp_path, command=["convnextv2"]))
        assert resolve_file(tmp_path / "config.yaml") == config
    assert not list(tmp_path.glob("*.partial"))
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "config.yaml", "logs"}


def test_everything_that_was_evaluated(tmp_path: Path) -> None:
    done = outcome(
        tmp_path,
        {
            "pretrain": None,
            "knn": RESULT,
            "evaluate": BETTER,
            "evaluate-scratch": RESULT,
            "evaluate-linear-probe": RESULT,
            "report": None,
        },
    )
    half = "50.00% top-1, 75.00% top-5 on 1,000 images"
    assert said(done)[:7] == [
        ["nearest neighbours", half],
        ["from FCMAE pretraining", "56.25% top-1, 75.00% top-5 on 1,000 images"],
        ["average of its weights (EMA)", half],
        ["from scratch (baseline)", half],
        ["linear probe", half],
        ["gain", "+6.25 points"],
        ["report", str(tmp_path / "report" / "report.html")],
    ]
    numbers = {"top1": 0.5, "top5": 0.75, "images": 1000}
    assert done.as_json()["evaluations"] == {
        "knn": numbers,
        "finetune": {**numbers, "top1": 0.5625, "ema": numbers},
        "finetune-scratch": numbers,
        "linear-probe": numbers,
    }


def test_final_numbers_by_their_names(tmp_path: Path) -> None:
    done = outcome(
        tmp_path,
        {"pretrain": None, "evaluate": BETTER, "report": None},
    )
    event_log = EventLog(tmp_path / "pretrain", active=True)
    for step, loss in ((0, 0.9), (10, 0.25)):
        event_log.write(Point(step=step, values={"loss": loss}))
    assert done.metrics() == {
        "finetune.top1": 0.5625,
        "finetune.top5": 0.75,
        "finetune.ema.top1": 0.5,
        "finetune.ema.top5": 0.75,
        "pretrain.loss": 0.25,
    }


def test_paths_and_commands_are_whole_at_80_columns(tmp_path: Path) -> None:
    folder = tmp_path / ("a folder with a long name, " * 3 + "and [brackets]")
    folder.mkdir()
    done = outcome(folder, {"report": None})
    done.mlflow = f"sqlite:///{folder}/mlflow.db"
    assert said(done) == [
        ["report", f"{folder}/report/report.html"],
        ["run folder", str(folder)],
        ["log", f"{folder}/driver.log"],
        ["MLflow", f"mlflow ui --backend-store-uri 'sqlite:///{folder}/mlflow.db'"],
    ]


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ((), "from scratch"),
        (("pretrain",), "from FCMAE pretraining"),
        (("pretrain", "intermediate"), "from the intermediate step"),
    ],
)
def test_where_the_model_comes_from(before: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = outcome(tmp_path, {**dict.fromkeys(before), "evaluate": RESULT})
    assert said(done)[0][0] == words
    assert not any(row[0] == "gain" for row in said(done))


def test_a_baseline_alone_has_no_gain(tmp_path: Path) -> None:
    done = outcome(tmp_path, {"evaluate-scratch": RESULT})
    assert said(done)[0][0] == "from scratch (baseline)"
    assert not any(row[0] == "gain" for row in said(done))
