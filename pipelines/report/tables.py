"""Results side by side: the table of metrics, the gain over training from scratch, and tables of
classes. Nothing here depends on the task.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipelines.results import FRACTION, Cell, Metric, Result, Table
from pipelines.results.metrics import MetricSpec, margin

PRETRAINED, SCRATCH, PROBE, NEIGHBOURS = "pretrained", "scratch", "probe", "neighbours"
MODELS = {
    PRETRAINED: "pretrained",
    SCRATCH: "from scratch",
    PROBE: "linear probe",
    NEIGHBOURS: "nearest neighbours",
}
"""Models in the order they are shown, as a reader knows them; others come last, by their names."""


@dataclass(frozen=True)
class Comparison:
    """Models that are measured by the same main metric.

    Args:
        results: By model, in the order they are shown.
        model: The first of them, which the page is about.
        scratch: The result of the baseline, if `model` is the pretrained one.
    """

    results: Mapping[str, Result]
    model: str
    scratch: Result | None

    @property
    def main(self) -> Result:
        return self.results[self.model]

    @property
    def gain(self) -> float | None:
        """Of the main metric, over the baseline."""
        return None if self.scratch is None else self.main.main.value - self.scratch.main.value

    @property
    def margin(self) -> float | None:
        """Half the 95% interval of the gain, in the metric's unit."""
        return None if self.scratch is None else margin(self.main.main, self.scratch.main)

    @property
    def is_loss(self) -> bool:
        """Whether the baseline is better."""
        scratch = self.scratch
        return scratch is not None and self.main.main.is_better(
            scratch.main.value, self.main.main.value
        )


@dataclass(frozen=True)
class ResultRow:
    """A line of the table of results; `model` decides its colour."""

    name: str
    model: str
    cells: list[str]
    images: int


@dataclass(frozen=True)
class ResultTable:
    """Every model's metrics; `gain` has the differences to the baseline, None without one."""

    metrics: list[str]
    rows: list[ResultRow]
    gain_title: str
    gain: list[str] | None


@dataclass(frozen=True)
class ClassRow:
    """A value of one class; `scratch` and `gain` are None without a baseline."""

    name: str
    value: float | None
    scratch: float | None
    gain: float | None


@dataclass(frozen=True)
class MatrixCell:
    """`count` of a true class that got one answer, their share of it; `hit`: the right one."""

    count: int
    share: float
    hit: bool


@dataclass(frozen=True)
class Pair:
    """Of class `true`, `count` were taken for `predicted`; `scratch`: by the baseline."""

    true: str
    predicted: str
    count: int
    share: float
    scratch: int | None


def comparisons(results: Mapping[str, Result]) -> list[Comparison]:
    """Results by their main metric; the first is of the first model in the order of MODELS."""
    known = [name for name in MODELS if name in results]
    ordered = {name: results[name] for name in [*known, *results]}
    groups: dict[str, dict[str, Result]] = {}
    for name, result in ordered.items():
        groups.setdefault(result.main.name, {})[name] = result
    return [
        Comparison(group, model, group.get(SCRATCH) if model == PRETRAINED else None)
        for group in groups.values()
        for model in [next(iter(group))]
    ]


def result_table(compared: list[Comparison]) -> ResultTable:
    """Every model, and the moving average of its weights if there is one."""
    results = {name: result for each in compared for name, result in each.results.items()}
    metrics: dict[str, Metric] = {}
    for result in results.values():
        metrics |= {metric.name: metric for metric in result.metrics if metric.name not in metrics}
    rows = []
    for model, result in results.items():
        title = MODELS.get(model, model)
        for name, each in ((title, result), (f"{title}, EMA", result.ema)):
            if each is not None:
                cells = [_text(each.metric(metric)) for metric in metrics]
                rows.append(ResultRow(name, model, cells, each.main.images))
    first = compared[0] if compared else None
    gain = [_gain_text(first, metric) for metric in metrics] if first and first.scratch else None
    shares = all(metric.unit == FRACTION for metric in metrics.values())
    rising = all(metric.direction == "higher" for metric in metrics.values())
    title = "gain, points" if shares and rising else "difference"
    return ResultTable([metric.title for metric in metrics.values()], rows, title, gain)


def _text(metric: Metric | None) -> str:
    return "–" if metric is None else metric.text(metric.value)


def _gain_text(compared: Comparison, name: str) -> str:
    first = compared.main.metric(name)
    second = compared.scratch.metric(name) if compared.scratch else None
    return "–" if first is None or second is None else signed(first, first.value - second.value)


def signed(metric: MetricSpec, change: float | None) -> str:
    """A difference with its sign, as it is printed."""
    return metric.change_text(change).replace("-", "−")


def class_rows(table: Table, scratch: Table | None, *, most: int) -> list[ClassRow]:
    """At most `most` classes of a table of bars, largest gain (else the best) first.

    Where there are more, those that differ most are chosen; without baseline the worst.
    """
    baselines = _by_class(scratch) if scratch else {}
    rows = []
    for name, value in _by_class(table).items():
        baseline = baselines.get(name)
        # Rounded, so that equal gains stay in the order of the classes.
        gain = None if value is None or baseline is None else round(value - baseline, 9)
        rows.append(ClassRow(name, value, baseline, gain))
    if scratch:
        rows.sort(key=lambda row: -abs(row.gain or 0))
        return sorted(rows[:most], key=lambda row: -(row.gain or 0))
    rows.sort(key=lambda row: 2 if row.value is None else row.value)
    return sorted(rows[:most], key=lambda row: -(row.value or 0))


def _by_class(table: Table) -> dict[str, float | None]:
    return {str(name): None if value is None else float(value) for name, value in table.rows}


def matrix_rows(table: Table) -> list[tuple[str, list[MatrixCell]]]:
    """Cells of a matrix by true class."""
    return [
        (
            name,
            [
                MatrixCell(count, count / max(1, sum(counts)), true == answer)
                for answer, count in enumerate(counts)
            ],
        )
        for true, (name, counts) in enumerate(_counts(table))
    ]


def confused_pairs(table: Table, scratch: Table | None, *, most: int) -> list[Pair]:
    """The `most` pairs of classes that are confused most often, most frequent first."""
    rows, baselines = list(_counts(table)), list(_counts(scratch)) if scratch else None
    pairs = [
        Pair(
            name,
            rows[predicted][0],
            count,
            count / max(1, sum(counts)),
            baselines[true][1][predicted] if baselines else None,
        )
        for true, (name, counts) in enumerate(rows)
        for predicted, count in enumerate(counts)
        if true != predicted and count
    ]
    return sorted(pairs, key=lambda pair: -pair.count)[:most]


def _counts(table: Table) -> Iterator[tuple[str, list[int]]]:
    """True class and counts of its answers."""
    for name, *counts in table.rows:
        yield str(name), [int(count) for count in counts if count is not None]


def cell_text(value: Cell, unit: str) -> str:
    """A cell of a plain table."""
    if isinstance(value, float):
        return MetricSpec(name="cell", title="", unit=unit).text(value)
    if isinstance(value, int):
        return f"{value:,} {unit}".rstrip()
    return "–" if value is None else value
