"""Lengths of training in the unit people think in; `Duration.steps` converts them to steps."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

Unit = Literal["epochs", "steps", "images", "%"]
TEXT = re.compile(r"(?P<amount>\d+(\.\d*)?(e[+-]?\d+)?)\s*(?P<unit>\S*)")


@dataclass(frozen=True)
class Duration:
    """An amount of training, for example 800 epochs or 5% of the whole.

    Raises:
        ValueError: For a negative amount, part of a step or of an image, more than 100%.
    """

    amount: float
    unit: Unit

    def __post_init__(self) -> None:
        if not 0 <= self.amount < float("inf"):
            raise ValueError(f"a duration is 0 or more, {self.amount} is not")
        if self.unit in ("steps", "images") and self.amount != int(self.amount):
            raise ValueError(f"{self.unit} are whole numbers, {self.amount:g} is not")
        if self.unit == "%" and self.amount > 100:
            raise ValueError(f"{self} is more than the whole training; at most 100% would work")

    @classmethod
    def parse(cls, value: object, bare: Unit) -> "Duration":
        """Read "800 epochs", "5000 steps", "12800000 images", "5%"; a bare number counts `bare`.

        Raises:
            ValueError: With what would have been understood.
        """
        if isinstance(value, Duration):
            return value
        match = TEXT.fullmatch(str(value).strip())
        units: dict[str, Unit] = {unit: unit for unit in get_args(Unit)} | {"": bare}
        units |= {unit.removesuffix("s"): unit for unit in units.values()}
        if match is None or match["unit"] not in units:
            raise ValueError("expected a duration, like 8 epochs, 5000 steps, 1000000 images or 5%")
        return cls(float(match["amount"]), units[match["unit"]])

    def steps(
        self, *, batches_per_epoch: int, global_batch_size: int, total_steps: int | None
    ) -> int:
        """Round to a number of optimizer steps; at least 1 unless the amount is 0.

        Args:
            batches_per_epoch: Steps of an epoch.
            global_batch_size: Images of a step.
            total_steps: Steps of the whole training, which percentages refer to; None while the
                length of the whole training itself is computed.

        Raises:
            ValueError: For percent without `total_steps`.
        """
        if self.unit == "%" and total_steps is None:
            raise ValueError(f"the length of training cannot be {self} of itself")
        per_unit = {
            "epochs": batches_per_epoch,
            "steps": 1,
            "images": 1 / global_batch_size,
            "%": (total_steps or 0) / 100,
        }
        return max(round(self.amount * per_unit[self.unit]), int(self.amount > 0))

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        if self.unit == "%":
            return f"{amount}%"
        return f"{amount} {self.unit.removesuffix('s') if amount == 1 else self.unit}"


def epochs(amount: float) -> Duration:
    """So many passes over the training images."""
    return Duration(amount, "epochs")


def steps(amount: int) -> Duration:
    """So many optimizer steps."""
    return Duration(amount, "steps")
