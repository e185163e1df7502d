"""Metadata of a weight file besides its tensors: class names, and how images are evaluated.

It is JSON under one key of a safetensors file's metadata, so every other reader ignores it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from convnextv2.tasks import IMAGENET_MEAN, IMAGENET_STD

KEY = "convnextv2"
FORMAT = {"format": "pt"}
"""An entry that transformers requires in a file's metadata."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How an image is preprocessed for evaluation.

    Attributes:
        image_size: Side in pixels.
        crop: Central fraction of the image that is used; None: all of it, whatever its ratio.
        interpolation: "bicubic" or "area".
        mean: Mean of each channel, for pixels scaled to 0..1.
        std: Standard deviation of each channel, likewise.
        bits: Bits of a stored value, 8 or 16.
    """

    image_size: int
    crop: float | None
    interpolation: Literal["bicubic", "area"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bits: int = 8

    @classmethod
    def usual(cls, image_size: int = 224) -> "Evaluation":
        """The paper's below 384 px, assumed where a file says nothing."""
        return cls(
            image_size=image_size,
            crop=0.875,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    @property
    def shorter_side(self) -> int:
        """To which an image is resized before the centre is cut out."""
        # Quotients that are whole but for their last bit: 28 / 0.875.
        return math.floor(self.image_size / (self.crop or 1.0) + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Names of the classes in the order of the head's rows, and the evaluation; where known."""

    classes: tuple[str, ...] = ()
    evaluation: Evaluation | None = None

    def as_entries(self) -> dict[str, str]:
        """Entries for a safetensors file's metadata."""
        known = {name: value for name, value in asdict(self).items() if value}
        return FORMAT | ({KEY: json.dumps(known)} if known else {})

    @classmethod
    def of_entries(cls, entries: Mapping[str, str] | None) -> "Metadata":
        """Read them back; foreign or damaged entries give `UNKNOWN`."""
        try:
            known = json.loads((entries or {})[KEY])
            evaluation = known.get("evaluation")
            if evaluation is not None:
                for name in ("mean", "std"):
                    evaluation[name] = tuple(evaluation[name])
                evaluation = Evaluation(**evaluation)
            return cls(classes=tuple(known.get("classes", ())), evaluation=evaluation)
        except (LookupError, TypeError, ValueError, AttributeError):
            return UNKNOWN


UNKNOWN = Metadata()
