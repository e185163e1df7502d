"""The result of a stage, and the file it is kept in."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cluster.resilience.lease import Lease
from convnextv2.durable import write_json
from pipelines.results.metrics import Metric, Part

RESULT_FILE = "result.json"
SCHEMA_VERSION: Literal[1] = 1

Cell = str | int | float | None


class Column(Part):
    """A column of a table; `unit` as of a metric, "" for text and bare numbers."""

    title: str
    unit: str = ""


class Table(Part):
    """A table, and how the report shows it.

    Args:
        name: Tables of one name are compared between models.
        title: Heading of its section.
        note: Sentences under the heading.
        look: "rows" as it stands. "bars": names of classes and a fraction of each, the higher the
            better. "matrix": names of true classes, then a column of counts for each class that is
            the answer, in the same order.
        columns: From the left.
        rows: A cell for each column; None where a value is not defined.
    """

    name: str
    title: str
    note: str = ""
    look: Literal["rows", "bars", "matrix"] = "rows"
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    rows: tuple[tuple[Cell, ...], ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: {len(self.columns)} columns, and a row of {len(row)} cells"
                )
        if self.look == "bars" and len(self.columns) != 2:
            raise ValueError(f"table {self.name}: bars have 2 columns, not {len(self.columns)}")
        if self.look == "matrix" and len(self.rows) != len(self.columns) - 1:
            raise ValueError(
                f"table {self.name}: a matrix of {len(self.columns) - 1} answers has as many rows, "
                f"not {len(self.rows)}"
            )
        return self


class Picture(Part):
    """A PNG in the stage's folder."""

    title: str
    file: Annotated[str, Field(pattern=r"^[\w.-]+\.png$")]


class Result(Part):
    """What was found out about one model.

    Args:
        metrics: At least one; models are compared by the first.
        tables, pictures: What else there is to see.
        note: What a reader has to know about the metrics.
        facts: Settings and sizes that belong to the result.
        seconds: What it took.
        ema: The same of the moving average of the weights, where one was kept.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    note: str = ""
    facts: dict[str, str | int | float] = Field(default_factory=dict)
    seconds: float = 0.0
    ema: "Result | None" = None

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for kind, names in (
            ("metrics", [metric.name for metric in self.metrics]),
            ("tables", [table.name for table in self.tables]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{kind} with the same name among {', '.join(names)}")
        return self

    @property
    def main(self) -> Metric:
        """What models are compared by."""
        return self.metrics[0]

    @property
    def values(self) -> dict[str, float]:
        """The metrics' values by name."""
        return {metric.name: metric.value for metric in self.metrics}

    @property
    def values_with_ema(self) -> dict[str, float]:
        """`values`, and those of the moving average as `<name>_ema`."""
        averaged = self.ema.metrics if self.ema else ()
        return self.values | {metric.of_ema().name: metric.value for metric in averaged}

    def metric(self, name: str) -> Metric | None:
        return next((metric for metric in self.metrics if metric.name == name), None)

    def table(self, name: str) -> Table | None:
        return next((table for table in self.tables if table.name == name), None)


def write_result(directory: Path, result: Result, lease: Lease | None = None) -> None:
    """Write RESULT_FILE; the pictures are there already.

    Workers that other workers may have replaced give their `lease` of the directory.

    Raises:
        FileNotFoundError: When a picture is not.
        Superseded: When a newer attempt has taken the lease.
    """
    for name in result_files(result):
        if name != RESULT_FILE and not (directory / name).exists():
            raise FileNotFoundError(f"{directory / name}: the result names it as a picture")
    if lease is None:
        write_json(directory / RESULT_FILE, result.model_dump())
    else:
        lease.publish(RESULT_FILE, json.dumps(result.model_dump(), indent=1).encode())


def read_result(directory: Path) -> Result:
    """The result of the stage in `directory`.

    Raises:
        ValueError: When the file is of another version, or is not what `write_result` writes.
    """
    path = directory / RESULT_FILE
    content = json.loads(path.read_text())
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version is {version}, this code reads {SCHEMA_VERSION}; --rerun of "
            "the stage makes it anew"
        )
    try:
        return Result.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from error


def find_result(directory: Path) -> Result | None:
    """The result of the stage in `directory`; None where it has none."""
    return read_result(directory) if (directory / RESULT_FILE).exists() else None


def result_files(result: Result) -> tuple[str, ...]:
    """Names of the files a result consists of."""
    both = (result, *([result.ema] if result.ema else []))
    return (RESULT_FILE, *(picture.file for each in both for picture in each.pictures))
