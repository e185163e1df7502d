"""Finds the weight files in a folder."""

import json
from pathlib import Path
from typing import Literal, NamedTuple

from convnextv2.weights.state import WeightsError

Container = Literal["safetensors", "PyTorch", "DeepSpeed checkpoint", "checkpoint of a run"]

# Hugging Face's files; an index names the shards of a model that is in several.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
# DeepSpeed's, in the folder of a step: whole under ZeRO 0 to 2, one partition a worker under 3.
WHOLE = "mp_rank_00_model_states.pt"
PARTITIONS = "zero_pp_rank_*_model_states.pt"
# In the folder above, the name of the newest step.
LATEST = "latest"
PIECES = "rank-00000.safetensors"


class Files(NamedTuple):
    """The files that hold a model's tensors, and the kind of folder where it matters."""

    files: tuple[Path, ...]
    container: Container | None = None


def files_of(path: Path) -> Files:
    """The files of a path, which is a file or a folder.

    Raises:
        WeightsError: When there is none, one is missing, or they are of a kind that is not read
            here; saying what would work.
    """
    if not path.exists():
        raise WeightsError(f"weight file {path} does not exist")
    if not path.is_dir():
        return Files(_shards(path) if path.name.endswith(INDEX) else (path,))
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return files_of(path / name)
    for folder in (path, path / "deepspeed", *_newest_step(path)):
        if (folder / WHOLE).is_file():
            return Files((folder / WHOLE,), "DeepSpeed checkpoint")
        if next(folder.glob(PARTITIONS), None) is not None:
            raise WeightsError(_partitioned(folder))
    if is_checkpoint(path):
        raise WeightsError(
            f"{path} is a checkpoint of a run, in one piece for each worker; write its weights to "
            f"one file with convnextv2 checkpoint consolidate {path} --output model.safetensors"
        )
    only = tuple(path.glob("*.safetensors"))
    if len(only) == 1:
        return Files(only)
    raise WeightsError(
        f"the folder {path} has no {', '.join((*FOLDER_FILES, WHOLE))}, nor exactly one "
        ".safetensors file; give the file itself"
    )


def is_checkpoint(path: Path) -> bool:
    """Whether it is a checkpoint folder of a run, in pieces."""
    return (path / PIECES).exists()


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is no index of shards: {error!r}") from error
    # A name with a folder in it could point anywhere.
    foreign = sorted(name for name in names if Path(name).name != name)
    if foreign or not names:
        what = ", ".join(foreign) or "nothing"
        raise WeightsError(f"{index} must name files beside it, it names {what}")
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise WeightsError(
            f"{index} names {len(names)} files, of which these are not there: {', '.join(missing)}"
        )
    return tuple(index.parent / name for name in sorted(names))


def _newest_step(folder: Path) -> list[Path]:
    latest = folder / LATEST
    name = latest.read_text().strip() if latest.is_file() else ""
    return [folder / name] if name and Path(name).name == name else []


def _partitioned(folder: Path) -> str:
    return (
        f"{folder} is a ZeRO-3 checkpoint of DeepSpeed, with a partition of the weights for each "
        "worker. DeepSpeed's own script, which it puts into the folder above, makes whole weights "
        f"of them: cd {folder.parent} && python zero_to_fp32.py . weights --tag {folder.name}; "
        f"then give {folder.parent / 'weights'}"
    )
