"""The form of results: what is refused, what comes back from a file, how numbers are written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.results import (
    RESULT_FILE,
    Column,
    Metric,
    MetricSpec,
    Picture,
    Result,
    Table,
    read_result,
    write_result,
)
from pipelines.results.classification import MOST_CLASSES_OF_MATRIX, accuracies, single_label
from pipelines.results.metrics import margin
from pipelines.stages.evaluate import counted

LOSS = MetricSpec(name="loss", title="loss", unit="", direction="lower")
MIOU = MetricSpec(name="mIoU", title="mIoU")
RESULT = Result(
    metrics=(
        Metric.of(MIOU, 0.4125, images=480, interval=(0.40, 0.425)),
        Metric.of(LOSS, math.nan, images=480),
    ),
    tables=(
        Table(
            name="sizes",
            title="By size",
            columns=(Column(title="size"), Column(title="AP", unit="fraction")),
            rows=(("small", 0.25), ("large", None), ("whole", 1.0)),
        ),
    ),
    pictures=(Picture(title="Masks", file="masks.png"),),
    facts={"scales": 3},
    ema=Result(metrics=(Metric.of(MIOU, 0.5, images=480),)),
)


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"masks\.png: the result names it as a picture"):
        write_result(tmp_path, RESULT)
    (tmp_path / "masks.png").touch()
    write_result(tmp_path, RESULT)
    found = read_result(tmp_path)
    assert math.isnan(found.metrics[1].value)
    assert found.model_dump_json() == RESULT.model_dump_json()
    assert found.values_with_ema == pytest.approx(
        {"mIoU": 0.4125, "loss": math.nan, "mIoU_ema": 0.5}, nan_ok=True
    )
    # Numbers stay what they were.
    assert [type(value) for _, value in found.tables[0].rows] == [float, type(None), float]
    assert type(found.facts["scales"]) is int


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "schema_version is 2, this code reads 1"),
        ({"schema_version": None}, "schema_version is None, this code reads 1"),
        ({"metrics": []}, "metrics\n"),
        ({"made_up": 1}, "made_up\n"),
    ],
)
def test_other_files_are_refused_by_name(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    content = json.loads(Result(metrics=RESULT.metrics[:1]).model_dump_json())
    (tmp_path / RESULT_FILE).write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=words) as error:
        read_result(tmp_path)
    assert str(error.value).startswith(str(tmp_path / RESULT_FILE))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"rows": [["a", 1, 2]]}, "2 columns, and a row of 3 cells"),
        (
            {"look": "matrix", "rows": [["a", 1], ["b", 2]]},
            "a matrix of 1 answers has as many rows",
        ),
        ({"look": "bars", "columns": [{"title": "a"}], "rows": []}, "bars have 2 columns, not 1"),
    ],
)
def test_tables_fit_their_look(table: dict[str, Any], words: str) -> None:
    whole = {"name": "t", "title": "T", "columns": [{"title": "a"}, {"title": "b"}], "rows": []}
    with pytest.raises(ValueError, match=words):
        Table.model_validate(whole | table)


def test_names_within_a_result_differ() -> None:
    with pytest.raises(ValueError, match="metrics with the same name among mIoU, mIoU"):
        Result(metrics=(RESULT.main, RESULT.main))


@pytest.mark.parametrize(
    ("spec", "value", "text", "change"),
    [
        (MIOU, 0.4125, "41.2%", "+41.2"),
        (MIOU, -0.05, "-5.0%", "-5.0"),
        (LOSS, 1.23456, "1.235", "+1.23"),
        (MetricSpec(name="t", title="time", unit="ms"), 12.5, "12.5 ms", "+12.5"),
        (MIOU, math.nan, "–", "–"),
    ],
)
def test_numbers_as_people_read_them(
    spec: MetricSpec, value: float, text: str, change: str
) -> None:
    assert (spec.text(value), spec.change_text(value)) == (text, change)


def test_direction_decides_what_is_better() -> None:
    assert MIOU.is_better(0.5, 0.4)
    assert LOSS.is_better(0.4, 0.5)
    assert not any(spec.is_better(0.5, 0.5) for spec in (MIOU, LOSS))


def test_the_margin_of_a_difference_is_that_of_independent_proportions() -> None:
    first, second = (accuracies(count, 1000, 1000)[0] for count in (800, 770))
    by_hand = 1.96 * math.sqrt(0.8 * 0.2 / 1000 + 0.77 * 0.23 / 1000)
    assert margin(first, second) == pytest.approx(by_hand)
    # An interval that ends at 1 is as wide as its other side.
    (near, _), (third, _) = accuracies(999, 1000, 1000), accuracies(500, 1000, 1000)
    assert near.interval is not None
    assert near.interval[1] == 1
    by_hand = 1.96 * math.sqrt(0.999 * 0.001 / 1000 + 0.25 / 1000)
    assert margin(near, third) == pytest.approx(by_hand)
    assert margin(first, Metric.of(MIOU, 0.5, images=9)) is None


@pytest.mark.parametrize("classes", [MOST_CLASSES_OF_MATRIX, MOST_CLASSES_OF_MATRIX + 1])
def test_a_matrix_of_too_many_classes_is_not_counted_and_that_is_said(classes: int) -> None:
    batches = [(torch.eye(classes)[:3], torch.tensor([0, 1, 0]))]
    counts = counted(iter(batches), classes, torch.device("cpu"))
    result = single_label(counts, [str(index) for index in range(classes)])
    left_out = classes > MOST_CLASSES_OF_MATRIX
    assert (counts.confusion is None) == left_out
    assert (result.table("confusion") is None) == left_out
    assert ("no confusion matrix of 1,001 classes" in result.note) == left_out
    assert result.main.value == pytest.approx(2 / 3)
    table = result.table("per_class")
    assert table is not None
    # Of two images of class 0 one was taken for class 2, of which there is none.
    assert [row[1] for row in table.rows[:3]] == [0.5, 1.0, None]
