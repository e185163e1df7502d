"""Pieces on disk: one safetensors file per worker, readable by any number of workers.

    rank-00000.safetensors     keys "weight:encoder.stages.0.0.dwconv.weight", "exp_avg:..."
    rank-00001.safetensors     metadata "pieces": {name: [start, shape of the whole]}

A reader asks for a run of elements of a parameter and gets it from wherever the writers' cuts put
it. So every checkpoint is a universal one: nothing is converted when the number of workers, the
ZeRO stage or the precision changes.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.states import WEIGHT, Piece

CHUNK = 16 << 20


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a file."""

    bytes: int
    sha256: str


def file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def write_pieces(path: Path, pieces: Sequence[Piece]) -> Entry:
    """Write and fsync a worker's pieces (on the host, contiguous), hashing on the way.

    safetensors' own writer holds Python's lock while it writes, which would stop the training
    that this runs beside.
    """
    tensors = {
        f"{kind}:{piece.name}": tensor.view(-1)
        for piece in pieces
        for kind, tensor in piece.tensors.items()
    }
    header: dict[str, Any] = {
        "__metadata__": {
            "pieces": json.dumps({piece.name: [piece.start, piece.shape] for piece in pieces})
        }
    }
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * 4
        header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        digest = hashlib.sha256()
        for part in (len(text).to_bytes(8, "little"), text):
            _write(file.fileno(), memoryview(part), digest)
        for tensor in tensors.values():
            _write(file.fileno(), _bytes(tensor), digest)
        os.fsync(file.fileno())
    return Entry(8 + len(text) + offset, digest.hexdigest())


def _bytes(tensor: Tensor) -> memoryview:
    if tensor.dtype != torch.float32:
        raise TypeError(f"states are saved in fp32, not {tensor.dtype}")
    return tensor.detach().numpy().data.cast("B") if tensor.numel() else memoryview(b"")


def _write(descriptor: int, content: memoryview, digest: Any) -> None:
    while content:
        written = os.write(descriptor, content[:CHUNK])
        digest.update(content[:written])
        content = content[written:]


class StateFiles:
    """The pieces of all writers of one checkpoint, by parameter.

    Args:
        directory: With the writers' files.

    Attributes:
        shapes: Of the whole parameters, by name.
        kinds: What is there of a parameter: "weight", and perhaps moments and an average.

    Raises:
        ValueError: When a file cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: list[Any] = []
        self.kinds: dict[str, set[str]] = defaultdict(set)
        self._runs: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for number, path in enumerate(sorted(directory.glob("rank-*.safetensors"))):
            try:
                self._files.append(safe_open(path, framework="pt"))
                pieces = json.loads(self._files[number].metadata()["pieces"])
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
            for key in self._files[number].keys():  # noqa: SIM118
                kind, _, name = key.partition(":")
                self.kinds[name].add(kind)
            for name, (start, shape) in pieces.items():
                self.shapes[name] = tuple(shape)
                numel = self._slice(number, WEIGHT, name).get_shape()[0]
                self._runs[name].append((start, start + numel, number))
        for runs in self._runs.values():
            runs.sort()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor:
        """Elements `start` to `start + numel` of a flattened parameter's tensor of that kind.

        Raises:
            ValueError: When they are not all there.
        """
        found, at = torch.empty(numel), start
        for begin, end, number in self._runs.get(name, []):
            if begin <= at < end and at < start + numel:
                upto = min(end, start + numel)
                part = self._slice(number, kind, name)[at - begin : upto - begin]
                found[at - start : upto - start] = part
                at = upto
        if at < start + numel:
            raise ValueError(
                f"{self.directory} holds no {kind} of {name} from element {at} to {start + numel}"
            )
        return found

    def whole(self, kind: str, name: str) -> Tensor:
        """A parameter's tensor of that kind in its own shape."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, torch.Size(shape).numel()).view(shape)

    def _slice(self, number: int, kind: str, name: str) -> Any:
        try:
            return self._files[number].get_slice(f"{kind}:{name}")
        except SafetensorError as error:
            raise ValueError(f"{self.directory} holds no {kind} of {name}") from error
