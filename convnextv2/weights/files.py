"""Opens weight files of any container without running code that may be in them.

A PyTorch file is a pickle, and a pickle may be a program. It is read by PyTorch's restricted
unpickler, which allows tensors and plain containers only. `argparse.Namespace`, which the official
training code puts into its checkpoints, is allowed as well: creating one runs no foreign code.
"""

import argparse
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from convnextv2.weights.folders import Container, files_of
from convnextv2.weights.huggingface import class_names_in
from convnextv2.weights.metadata import UNKNOWN, Metadata
from convnextv2.weights.state import State, WeightsError

# Entries under which training codes save weights; of several, the first one here is read.
PARTS = ("model", "state_dict", "module", "model_state_dict", "model_ema", "state_dict_ema")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Tensors under the names they have in the files.

    `part` is the entry they were under ("" if none), `parts` are all entries with weights.
    """

    files: tuple[Path, ...]
    container: Container
    state: State
    part: str = ""
    parts: tuple[str, ...] = ()
    metadata: Metadata = UNKNOWN


def open_weights(path: Path, part: str | None = None) -> Contents:
    """Open a safetensors or PyTorch file, a Hugging Face folder or a DeepSpeed checkpoint.

    Args:
        path: File or folder.
        part: Where a file has several models, an entry such as "model_ema", or what their names
            begin with, such as "student".

    Raises:
        WeightsError: When it is missing, damaged, unsafe, or holds no weights.
    """
    files, container = files_of(path)
    safe = all(_is_safetensors(file) for file in files)
    content, *shards = (_safetensors(file) if safe else _pickle(file) for file in files)
    for file, shard in zip(files[1:], shards, strict=True):
        if not (_is_state(content) and _is_state(shard)):
            raise WeightsError(f"{file} is no shard: it holds more, or other, than tensors by name")
        content = {**content, **shard}
    state, part, parts = _chosen(content, part, files[0])
    said = _metadata(files[0]) if safe else UNKNOWN
    return Contents(
        files=files,
        container=container or ("safetensors" if safe else "PyTorch"),
        state=state,
        part=part,
        parts=parts,
        metadata=class_names_in(files[0].parent) if path.is_dir() and said == UNKNOWN else said,
    )


def _is_safetensors(file: Path) -> bool:
    """Judged by content, as pickles have any suffix; a truncated file is judged by its suffix."""
    with file.open("rb") as opened:
        start = opened.read(9)
    # Eight bytes of length, then JSON.
    return start[8:] == b"{" or (file.suffix == ".safetensors" and not start.startswith(b"PK"))


def _safetensors(file: Path) -> State:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise WeightsError(f"{file} is no readable safetensors file: {error}") from error


def _metadata(file: Path) -> Metadata:
    with safe_open(file, framework="pt") as opened:
        return Metadata.of_entries(opened.metadata())


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
    """The state among what a file holds, the entry it is under, and all such entries."""
    entries = {"": content} if _is_state(content) else dict(_entries(content))
    parts = tuple(name for name in entries if name)
    if part in parts:
        return _tensors(entries[part]), part, parts
    where = _default(entries)
    if where is None and parts:
        raise WeightsError(
            f"{file} holds weights under {', '.join(parts)}; choose one of them (--part, part=)"
        )
    state = {} if where is None else _tensors(entries[where])
    if part is not None:
        beginning = f"{part.rstrip('.')}."
        where, state = part, {n: v for n, v in state.items() if n.startswith(beginning)}
    if state and where is not None:
        return state, where, parts
    shown = ", ".join(list(map(str, content))[:8]) if isinstance(content, Mapping) else ""
    held = shown or f"a {type(content).__name__}"
    if part is not None:
        raise WeightsError(f"{file} has no weights under {part!r}; it holds {held}")
    raise WeightsError(
        f"{file} holds no weights: neither tensors by name, nor these under an entry such as "
        f"{', '.join(PARTS)}; it holds {held}"
    )


def _default(entries: Mapping[str, Any]) -> str | None:
    """The entry that is read unless another is asked for; None if it cannot be told."""
    for name in ("", *PARTS):
        if name in entries:
            return name
    # Other entries may be random states and the like; a model has a convolution (4 dimensions).
    models = [name for name, each in entries.items() if any(v.ndim == 4 for v in each.values())]
    return models[0] if len(models) == 1 else None


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Entries with weights, and those within entries ("checkpoint.state_dict")."""
    if not isinstance(content, Mapping):
        return
    for name, value in content.items():
        if _is_state(value):
            yield str(name), value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{n}", v) for n, v in value.items() if _is_state(v))


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _tensors(content: Mapping[Any, Tensor]) -> State:
    return {str(name): value.detach() for name, value in content.items()}
