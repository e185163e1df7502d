"""Opening weight files of any container without running anything that is in them.

A PyTorch file is a pickle, and a pickle may be a program. It is read by PyTorch's restricted
unpickler, which knows tensors and plain containers only; `argparse.Namespace`, which the official
training code puts into its checkpoints, is let through, since making one runs nothing.
"""

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from convnextv2.weights.state import State, WeightsError

Container = Literal["safetensors", "PyTorch", "checkpoint folder"]

# Where training codes keep the weights among other things; the first one there is read.
PARTS = ("model", "state_dict", "module", "model_state_dict", "model_ema", "state_dict_ema")
# What wrappers (DistributedDataParallel, torch.compile, our tasks) put before every name.
WRAPPERS = ("module.", "_orig_mod.", "model.")
# Files of a folder that hold its weights: Hugging Face's, and what DeepSpeed saves.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
DEEPSPEED_FILES = ("mp_rank_00_model_states.pt", "deepspeed/mp_rank_00_model_states.pt")
ZERO_3_FILES = ("zero_pp_rank_*_model_states.pt", "deepspeed/zero_pp_rank_*_model_states.pt")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Tensors under the file's own names, without wrappers.

    `part` is the entry they were under ("" if none), `parts` are all entries with weights.
    """

    file: Path
    container: Container
    state: State
    part: str = ""
    parts: tuple[str, ...] = ()


def open_weights(path: Path, part: str | None = None) -> Contents:
    """Open a safetensors or PyTorch file, a Hugging Face folder or a checkpoint of a run.

    Args:
        path: File or folder.
        part: Entry to read when a file has several, such as "model_ema".

    Raises:
        WeightsError: When it is missing, damaged, unsafe, or holds no weights.
    """
    if not path.exists():
        raise WeightsError(f"weight file {path} does not exist")
    file = _file_in(path) if path.is_dir() else path
    if _is_safetensors(file):
        if part:
            raise WeightsError(f"{file} is a safetensors file, it has no part {part!r}")
        return Contents(file=file, container="safetensors", state=_unwrapped(_safetensors(file)))
    state, part, parts = _chosen(_pickle(file), part, file)
    folder = path.is_dir() and file.name not in FOLDER_FILES
    return Contents(
        file=file,
        container="checkpoint folder" if folder else "PyTorch",
        state=_unwrapped(state),
        part=part,
        parts=parts,
    )


def _file_in(folder: Path) -> Path:
    for name in (*FOLDER_FILES, *DEEPSPEED_FILES):
        if (folder / name).is_file():
            return folder / name
    if any(True for pattern in ZERO_3_FILES for _ in folder.glob(pattern)):
        raise WeightsError(
            f"{folder} is a ZeRO-3 checkpoint: its weights are in pieces, one for each worker. "
            "Give the .safetensors file that the stage writes from it when it is done: "
            "fcmae.safetensors of pretraining, model.safetensors of fine-tuning"
        )
    if (folder / "rank-00000.safetensors").exists():
        raise WeightsError(
            f"{folder} is a checkpoint in training, in pieces; write its weights to one file with "
            f"convnextv2 checkpoint export {folder} --output model.safetensors"
        )
    only = list(folder.glob("*.safetensors"))
    if len(only) == 1:
        return only[0]
    raise WeightsError(
        f"the folder {folder} has no {', '.join((*FOLDER_FILES, *DEEPSPEED_FILES))}, nor exactly "
        "one .safetensors file; give the file itself"
    )


def _is_safetensors(file: Path) -> bool:
    """By content, for pickles come under any name; a truncated file is judged by its name."""
    with file.open("rb") as opened:
        start = opened.read(9)
    # Eight bytes of length, then JSON.
    return start[8:] == b"{" or (file.suffix == ".safetensors" and not start.startswith(b"PK"))


def _safetensors(file: Path) -> State:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise WeightsError(f"{file} is no readable safetensors file: {error}") from error


def _pickle(file: Path) -> Any:
    with file.open("rb") as opened:
        if not opened.read(4).startswith((b"PK\x03\x04", b"\x80")):
            raise WeightsError(f"{file} is neither a safetensors nor a PyTorch file")
        opened.seek(0)
        return _restricted_load(opened, file)


def _restricted_load(opened: BinaryIO, file: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # About the pickle's protocol.
            # The open file, for a path makes PyTorch go by the name.
            return torch.load(opened, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) ([\w.]+\w)", str(error))
        if found is None:
            raise WeightsError(f"{file} is no PyTorch file of weights: {_first(error)}") from error
        raise WeightsError(
            f"{file} is refused: besides tensors it asks for {found[1]}, and a pickle can run any "
            "code that way. Nothing of it was run. Ask its author for safetensors; if you trust "
            "it, load it yourself and save the tensors alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # A damaged file fails in as many ways as there are bytes in it.
        raise WeightsError(f"{file} is no readable PyTorch file: {_first(error)}") from error


def _first(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _chosen(content: Any, part: str | None, file: Path) -> tuple[State, str, tuple[str, ...]]:
    """The state among what a PyTorch file holds, the entry it is under, and all such entries."""
    if part is None and _is_state(content):
        return _tensors(content), "", ()
    entries = dict(content) if isinstance(content, Mapping) else {}
    parts = tuple(str(name) for name, value in entries.items() if _is_state(value))
    for name in (part,) if part else PARTS:
        if name in parts:
            return _tensors(entries[name]), name, parts
    shown = ", ".join(list(map(str, entries))[:8]) or f"a {type(content).__name__}"
    if part:
        raise WeightsError(f"{file} has no weights under {part!r}; it holds {shown}")
    raise WeightsError(
        f"{file} holds no weights: neither tensors by name, nor these under one of "
        f"{', '.join(PARTS)}; it holds {shown}"
    )


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _tensors(content: Mapping[Any, Tensor]) -> State:
    return {str(name): value.detach() for name, value in content.items()}


def _unwrapped(state: State) -> State:
    for prefix in WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            return _unwrapped({name.removeprefix(prefix): v for name, v in state.items()})
    return state
