"""What every section of the configuration is made of."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from convnextv2.recipe.duration import Duration, Unit
from convnextv2.sizes import size_of


def _known_size(name: str) -> str:
    size_of(name)
    return name


def _read(bare: Unit) -> PlainValidator:
    return PlainValidator(lambda value: Duration.parse(value, bare))


def _some(duration: Duration) -> Duration:
    if not duration.amount:
        raise ValueError("more than nothing is needed")
    return duration


def _interval_or_auto(value: object) -> Duration | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return _some(Duration.parse(value, "steps"))
    except ValueError as error:
        raise ValueError(f"{error}; auto would work, too") from error


KINDS = ("(a number)", "(a section)")
"""Of a field that may be either. pydantic puts them into the paths of errors; nobody else needs
them."""
Size = Annotated[str, AfterValidator(_known_size)]
Warmup = Annotated[Duration, _read("epochs"), PlainSerializer(str)]
Length = Annotated[Duration, _read("epochs"), AfterValidator(_some), PlainSerializer(str)]
Interval = Annotated[Duration, _read("steps"), AfterValidator(_some), PlainSerializer(str)]
IntervalOrAuto = Annotated[
    Duration | Literal["auto"], PlainValidator(_interval_or_auto), PlainSerializer(str)
]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Frozen, strict about unknown keys; the text under a field is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )
