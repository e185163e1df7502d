"""One number of a result: what it measures, which way is better, and how people read it."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

FRACTION = "fraction"
"""The unit of values from 0 to 1, which people are shown in percent."""


class Part(BaseModel):
    """Frozen, and strict about unknown keys. A value that is not defined is NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricSpec(Part):
    """What a number measures.

    Args:
        name: In files, in MLflow and for `keep_best`: letters, digits, "_" and "-".
        title: What people call it.
        unit: "fraction" (0 to 1, shown in percent), a unit such as "ms", or "" for none.
        direction: Which values are better.
        charted: Whether the report draws it over the steps, where it is measured during training.
    """

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    title: str
    unit: str = FRACTION
    direction: Literal["higher", "lower"] = "higher"
    charted: bool = True

    def during_training(self) -> Self:
        """The same as measured on the validation split while training goes on: `val_<name>`."""
        title = f"{self.title} on the validation split"
        return self.model_copy(update={"name": f"val_{self.name}", "title": title})

    def of_ema(self) -> Self:
        """The same of the moving average of the weights: `<name>_ema`."""
        update = {"name": f"{self.name}_ema", "title": f"{self.title}, EMA"}
        return self.model_copy(update=update)

    def is_better(self, value: float, other: float) -> bool:
        return value > other if self.direction == "higher" else value < other

    def text(self, value: float | None, decimals: int = 1) -> str:
        """A value for people; `decimals` are those of percents."""
        if value is None or math.isnan(value):
            return "–"
        if self.unit == FRACTION:
            return f"{value:.{decimals}%}"
        return f"{value:.4g} {self.unit}".rstrip()

    def change_text(self, change: float | None, decimals: int = 1) -> str:
        """A signed difference without its unit; of fractions, in percentage points."""
        if change is None or math.isnan(change):
            return "–"
        return f"{100 * change:+.{decimals}f}" if self.unit == FRACTION else f"{change:+.3g}"

    @property
    def change_unit(self) -> str:
        return "points" if self.unit == FRACTION else self.unit


class Metric(MetricSpec):
    """A measured number.

    Args:
        value: In the metric's unit; NaN where it is not defined.
        images: How many images it is of.
        interval: Lower and upper end of its 95% confidence interval, None if it is not known.
    """

    value: float
    images: Annotated[int, Field(ge=0)]
    interval: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        spec: MetricSpec,
        value: float,
        *,
        images: int,
        interval: tuple[float, float] | None = None,
    ) -> Self:
        return cls(**spec.model_dump(), value=value, images=images, interval=interval)

    @property
    def half_width(self) -> float | None:
        """Half the interval; of one that is cut off at a bound, the side that is not."""
        if self.interval is None:
            return None
        lower, upper = self.interval
        return max(self.value - lower, upper - self.value)


def margin(first: Metric, second: Metric) -> float | None:
    """Half the 95% interval of the difference of two metrics, None if either has no interval.

    The errors are taken as independent, so their squares add up. Two models are scored on the same
    images and tend to err on the same ones: the true interval is rather narrower.
    """
    if first.half_width is None or second.half_width is None:
        return None
    return math.hypot(first.half_width, second.half_width)


def proportion(spec: MetricSpec, count: float, images: int) -> Metric:
    """The share `count` / `images` with its 95% interval by the normal approximation."""
    value = count / images
    half = 1.96 * math.sqrt(value * (1 - value) / images)
    interval = max(0.0, value - half), min(1.0, value + half)
    return Metric.of(spec, value, images=images, interval=interval)
