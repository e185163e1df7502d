"""The sections of the page that show the tables of results, each in the look it asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.report.tables import (
    MODELS,
    PRETRAINED,
    SCRATCH,
    ClassRow,
    Comparison,
    MatrixCell,
    Pair,
    cell_text,
    class_rows,
    confused_pairs,
    matrix_rows,
)
from pipelines.results import Table

MOST_CLASSES = 30
"""Classes that are shown; of a matrix that has more, its most frequent mistakes."""


@dataclass(frozen=True)
class TableSection:
    """One table of one or several models; fields that its look does not use are empty.

    Args:
        table: Of `model`, the first that has it.
        model: Whose colour it has.
        compared: Whether the baseline has it, too.
        bars: Rows of a table of bars.
        matrices: Of every model, by name.
        pairs: Instead of matrices, where there are too many classes.
        plain: Rows of texts of every model, by title.
    """

    table: Table
    model: str
    compared: bool
    bars: Sequence[ClassRow] = ()
    matrices: Sequence[tuple[str, list[tuple[str, list[MatrixCell]]]]] = ()
    pairs: Sequence[Pair] = ()
    plain: Sequence[tuple[str, list[list[str]]]] = ()


def table_sections(compared: Sequence[Comparison]) -> list[TableSection]:
    """Every table there is; those of one name and the same main metric stand together."""
    sections = []
    for each in compared:
        names = [table.name for result in each.results.values() for table in result.tables]
        sections += [_section(each, name) for name in dict.fromkeys(names)]
    return sections


def _section(compared: Comparison, name: str) -> TableSection:
    tables = {
        model: table
        for model, result in compared.results.items()
        if (table := result.table(name)) is not None
    }
    model, table = next(iter(tables.items()))
    scratch = tables.get(SCRATCH) if model == PRETRAINED else None
    both = scratch is not None
    if table.look == "bars":
        rows = class_rows(table, scratch, most=MOST_CLASSES)
        return TableSection(table, model, both, bars=rows)
    if table.look == "matrix" and len(table.rows) > MOST_CLASSES:
        pairs = confused_pairs(table, scratch, most=MOST_CLASSES)
        return TableSection(table, model, both, pairs=pairs)
    if table.look == "matrix":
        matrices = [(name, matrix_rows(each)) for name, each in tables.items()]
        return TableSection(table, model, both, matrices=matrices)
    plain = [(MODELS.get(name, name), _texts(each)) for name, each in tables.items()]
    return TableSection(table, model, both, plain=plain)


def _texts(table: Table) -> list[list[str]]:
    units = [column.unit for column in table.columns]
    return [
        [cell_text(cell, unit) for cell, unit in zip(row, units, strict=True)] for row in table.rows
    ]
