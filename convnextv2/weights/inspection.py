"""Inspects a weight file: its dialect, container and model, and what it can be used for."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from convnextv2 import PathLike
from convnextv2.weights.files import Contents, open_weights
from convnextv2.weights.folders import Container
from convnextv2.weights.geometry import Geometry, geometry_of, why_no_decoder
from convnextv2.weights.metadata import Metadata
from convnextv2.weights.recognition import to_ours
from convnextv2.weights.state import State, WeightsError


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A file's weights under our names, and what they are.

    Attributes:
        files: The files that were read, also when a folder was given.
        dialect: See `convnextv2.weights.dialects`.
        prefix: What stood before every name in the file.
        left_out: Names without that prefix, which are no part of the model.
        container: What kind of file it is.
        part: The entry of a PyTorch file that was read; "" if it holds the weights alone.
        parts: All its entries with weights.
        geometry: The model, as the shapes tell it.
        metadata: Class names and evaluation, where the file says them.
        state: The weights.
    """

    files: tuple[Path, ...]
    dialect: str
    prefix: str
    left_out: tuple[str, ...]
    container: Container
    part: str
    parts: tuple[str, ...]
    geometry: Geometry
    metadata: Metadata
    state: State

    @property
    def file(self) -> Path:
        """The file, or the folder of its shards."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.state.values())

    @property
    def dtypes(self) -> list[str]:
        """Names of the dtypes, that of most parameters first."""
        counts: Counter[str] = Counter()
        for value in self.state.values():
            counts[str(value.dtype).removeprefix("torch.")] += value.numel()
        return [name for name, _ in counts.most_common()]

    @property
    def why_no_reconstruction(self) -> str:
        return why_no_decoder(self.geometry)

    def as_json(self) -> dict[str, object]:
        return {
            "file": str(self.file),
            "dialect": self.dialect,
            "prefix": self.prefix,
            "left_out": list(self.left_out),
            "container": self.container,
            "part": self.part,
            "parts": list(self.parts),
            "size": self.geometry.size,
            **asdict(self.geometry),
            "parameters": self.parameters,
            "dtypes": self.dtypes,
            **asdict(self.metadata),
            "why_no_reconstruction": self.why_no_reconstruction,
        }


def inspect(path: PathLike, *, part: str | None = None) -> Inspection:
    """Read a file of any dialect and describe it.

    Args:
        path: safetensors or PyTorch file, Hugging Face folder (shards, too), or a DeepSpeed
            checkpoint of ZeRO 0 to 2.
        part: Where a file has several models, an entry such as "model_ema", or what their names
            begin with, such as "student".

    Raises:
        WeightsError: When it is missing, damaged, unsafe, or no ConvNeXt V2's.
    """
    return inspect_contents(open_weights(Path(path), part))


def inspect_contents(contents: Contents) -> Inspection:
    """Describe tensors that have been read already.

    Raises:
        WeightsError: When they are no ConvNeXt V2's.
    """
    try:
        ours = to_ours(contents.state)
        geometry = geometry_of(ours.state)
    except WeightsError as error:
        raise WeightsError(f"{contents.files[0]}: {error}") from error
    if len(contents.metadata.classes) != geometry.num_classes:
        contents = replace(contents, metadata=replace(contents.metadata, classes=()))
    return Inspection(
        files=contents.files,
        dialect=ours.dialect,
        prefix=ours.prefix,
        left_out=ours.left_out,
        container=contents.container,
        part=contents.part,
        parts=contents.parts,
        geometry=geometry,
        metadata=contents.metadata,
        state=ours.state,
    )


def read(path: PathLike, *, part: str | None = None) -> State:
    """Read a file of any dialect under our names; dtypes are kept.

    An FCMAE file yields encoder and decoder. See `inspect` for arguments and errors.
    """
    return inspect(path, part=part).state
