"""What a weight file is: dialect, container, model, and what it can be used for."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convnextv2.weights.dialects import to_ours
from convnextv2.weights.files import Container, open_weights
from convnextv2.weights.geometry import Geometry, geometry_of, why_no_decoder
from convnextv2.weights.state import State, WeightsError


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A file's weights under our names, and what they are.

    Attributes:
        file: The file they are in, also when a folder was given.
        dialect: See `convnextv2.weights.dialects`.
        container: What kind of file it is.
        part: The entry of a PyTorch file that was read; "" if it holds the weights alone.
        parts: All its entries with weights.
        geometry: The model, as the shapes tell it.
        state: The weights.
    """

    file: Path
    dialect: str
    container: Container
    part: str
    parts: tuple[str, ...]
    geometry: Geometry
    state: State

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.state.values())

    @property
    def dtypes(self) -> list[str]:
        """Most parameters first."""
        counts: Counter[str] = Counter()
        for value in self.state.values():
            counts[str(value.dtype).removeprefix("torch.")] += value.numel()
        return [name for name, _ in counts.most_common()]

    @property
    def why_no_reconstruction(self) -> str:
        return why_no_decoder(self.geometry)

    def as_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "dialect": self.dialect,
            "container": self.container,
            "part": self.part,
            "parts": list(self.parts),
            "size": self.geometry.size,
            **asdict(self.geometry),
            "parameters": self.parameters,
            "dtypes": self.dtypes,
            "why_no_reconstruction": self.why_no_reconstruction,
        }


def inspect(path: Path, *, part: str | None = None) -> Inspection:
    """Read a file of any dialect and say what it is.

    Args:
        path: safetensors or PyTorch file, Hugging Face folder, or checkpoint folder of a run.
        part: Entry to read when a PyTorch file has several, such as "model_ema".

    Raises:
        WeightsError: When it is missing, damaged, unsafe, or no ConvNeXt V2's.
    """
    contents = open_weights(path, part)
    try:
        state, dialect = to_ours(contents.state)
        geometry = geometry_of(state)
    except WeightsError as error:
        raise WeightsError(f"{contents.file}: {error}") from error
    return Inspection(
        file=contents.file,
        dialect=dialect,
        container=contents.container,
        part=contents.part,
        parts=contents.parts,
        geometry=geometry,
        state=state,
    )


def read(path: Path, *, part: str | None = None) -> State:
    """Read a file of any dialect under our names; dtypes are kept.

    An FCMAE file yields encoder and decoder. See `inspect` for arguments and errors.
    """
    return inspect(path, part=part).state
