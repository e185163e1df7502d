"""Weights that the configuration names for a stage to start from: `finetune.weights=FILE`.

They are looked at before anything runs. A stage's key has the hash of what is in the files, not
their path; and when the stage begins, they are copied into its folder under our names, provided
that they are still the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from convnextv2.sizes import size_of
from convnextv2.weights import Geometry, WeightsError, write
from convnextv2.weights.folders import files_of, is_checkpoint
from pipelines.config import ModelConfig, PipelineConfig
from pipelines.graph import digest_of, hash_files
from pipelines.training.weights.reading import inspect

COPY = "initial.safetensors"


def find_problems(config: PipelineConfig) -> list[str]:
    """All that is wrong with the weights a configuration names, by field."""
    named = {
        f"{name}.weights": path
        for name, section in config.sections().items()
        if (path := getattr(section, "weights", None)) is not None
    }
    return [
        f"{field}: {problem}"
        for field, path in named.items()
        for problem in _problems(path, config.model)
    ]


@dataclass(frozen=True)
class Given:
    """The weights of a stage: where they are, and the hash of what is in them. Or none."""

    path: Path | None
    digest: str

    @classmethod
    def of(cls, path: Path | None) -> "Given":
        """Hash what lies at `path`; raises WeightsError when it is not there."""
        return cls(path, "" if path is None else content_digest(path))

    @property
    def settings(self) -> dict[str, str]:
        """For the stage's key."""
        return {"weights": self.digest} if self.digest else {}

    @property
    def code(self) -> tuple[Callable[..., object], ...]:
        """For the stage's key, too."""
        return () if self.path is None else (Given.copy,)

    def copy(self, directory: Path) -> Path | None:
        """Copy them into a stage's folder, under our names; returns the file.

        Raises:
            WeightsError: When they are no longer what was hashed.
        """
        if self.path is None:
            return None
        found = inspect(self.path)
        copy = (directory / COPY).resolve()
        write(found.state, copy, to="official", metadata=found.metadata)
        if content_digest(self.path) != self.digest:
            copy.unlink()
            raise WeightsError(f"{self.path} was changed since this command began; run it again")
        return copy


def content_digest(path: Path) -> str:
    """sha256 of the files' contents, the same wherever they lie.

    Raises:
        WeightsError: When they are not there.
    """
    files = sorted(path.glob("rank-*")) if is_checkpoint(path) else files_of(path).files
    # Their names begin with `path` already, which may be relative to the current folder.
    return digest_of([*hash_files(Path(), *map(str, files)).values()])


def _problems(path: Path, model: ModelConfig) -> Iterator[str]:
    try:
        geometry = inspect(path).geometry
    except WeightsError as error:
        yield str(error)
        return
    except OSError as error:
        yield f"{path} cannot be read: {error.strerror}"
        return
    size = size_of(model.size)
    if (geometry.depths, geometry.dims) != (size.depths, size.dims):
        yield f"{path} is {_size(geometry)}, and model.size is {model.size}{_would_work(geometry)}"
    if geometry.stem_stride != model.stem_stride:
        yield (
            f"{path} has a stem of stride {geometry.stem_stride}, and model.stem_stride is "
            f"{model.stem_stride}; model.stem_stride={geometry.stem_stride} would work"
        )
    if geometry.in_channels != model.in_channels:
        yield (
            f"{path} takes images of {geometry.in_channels} channels, and model.in_channels is "
            f"{model.in_channels}; model.in_channels={geometry.in_channels} would work"
        )


def _size(geometry: Geometry) -> str:
    if geometry.size != "custom":
        return geometry.size
    return f"of a size of its own (depths {geometry.depths}, channels {geometry.dims})"


def _would_work(geometry: Geometry) -> str:
    return "" if geometry.size == "custom" else f"; model.size={geometry.size} would work"
