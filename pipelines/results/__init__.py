"""What a stage finds out, in one form for all tasks: named metrics, tables and pictures.

A stage that has a result writes it to `result.json` in its folder. The report, MLflow, the closing
table and `keep_best` read this form alone, so none of them knows a task by name.
"""

from pipelines.results.metrics import FRACTION, Metric, MetricSpec
from pipelines.results.result import (
    RESULT_FILE,
    Cell,
    Column,
    Picture,
    Result,
    Table,
    find_result,
    read_result,
    result_files,
    write_result,
)

__all__ = [
    "FRACTION",
    "RESULT_FILE",
    "Cell",
    "Column",
    "Metric",
    "MetricSpec",
    "Picture",
    "Result",
    "Table",
    "find_result",
    "read_result",
    "result_files",
    "write_result",
]
