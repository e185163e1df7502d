"""State fragments on disk: one safetensors file per worker, readable by any number of workers.

    rank-00000.safetensors     keys "weight:encoder.stages.0.0.dwconv.weight", "exp_avg:..."
    rank-00001.safetensors     metadata "pieces": {name: [start, shape of the whole]}

A reader asks for a run of elements of a parameter and gets it from wherever the writers' cuts put
it. So every checkpoint is a universal one: nothing is converted when the number of workers, the
ZeRO stage or the precision changes.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.checkpoint.fragments import WEIGHT, StateFragment
from cluster.durable import FileDigest, write

INDEX = "pieces"
"""Key of the metadata that says which run of which parameter a file holds."""


def file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def write_fragments(path: Path, fragments: Sequence[StateFragment]) -> FileDigest:
    """Write and fsync a worker's fragments (on the host, contiguous), hashing on the way.

    safetensors' own writer holds Python's lock while it writes, which would stop the training
    that this runs beside.

    Raises:
        ValueError: When a tensor is not fp32, or two fragments are of one parameter.
    """
    tensors = {
        f"{kind}:{fragment.name}": tensor.view(-1)
        for fragment in fragments
        for kind, tensor in fragment.tensors.items()
    }
    runs = {fragment.name: [fragment.start, fragment.shape] for fragment in fragments}
    if len(runs) < len(fragments):
        raise ValueError("a worker saves one fragment of a parameter, these are several of one")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"states are saved in fp32; {key} is {tensor.dtype}")
    sizes = {key: (tensor.numel(),) for key, tensor in tensors.items()}
    contents = (as_bytes(tensor) for tensor in tensors.values())
    return write(path, [header(sizes, {INDEX: json.dumps(runs)}), *contents])


def header(shapes: Mapping[str, Sequence[int]], metadata: dict[str, str] | None = None) -> bytes:
    """The beginning of a safetensors file of fp32 tensors, which follow in the same order."""
    described: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * torch.Size(shape).numel()
        described[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the host."""
    return tensor.detach().view(-1).numpy().data.cast("B") if tensor.numel() else memoryview(b"")


class StateFiles:
    """The fragments of all writers of one checkpoint, by parameter.

    Args:
        directory: With the writers' files.

    Attributes:
        shapes: Of the whole parameters, by name.
        kinds: What is there of a parameter: "weight", and perhaps moments and an average.

    Raises:
        ValueError: When a file cannot be read, or is not as `write_fragments` makes them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kinds: dict[str, set[str]] = defaultdict(set)
        self._files: list[Any] = []
        # (first, last + 1, file) of the fragments of a parameter, in order.
        self._runs: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for path in sorted(directory.glob("rank-*.safetensors")):
            try:
                self._open(path)
            except (
                OSError,
                RuntimeError,
                SafetensorError,
                LookupError,
                TypeError,
                ValueError,
            ) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
        for runs in self._runs.values():
            runs.sort()

    def _open(self, path: Path) -> None:
        file = safe_open(path, framework="pt")
        sizes: dict[str, dict[str, int]] = defaultdict(dict)
        for key in file.keys():  # noqa: SIM118
            kind, _, name = key.partition(":")
            part = file.get_slice(key)
            if part.get_dtype() != "F32":
                raise ValueError(f"{key} is {part.get_dtype()}, states are F32")
            (sizes[name][kind],) = part.get_shape()
        fragments = dict(json.loads(file.metadata()[INDEX]))
        if fragments.keys() != sizes.keys():
            raise ValueError(
                f"fragments are said of {sorted(fragments.keys() ^ sizes.keys())[0]} alone"
            )
        for name, (start, shape) in fragments.items():
            if WEIGHT not in sizes[name]:
                raise ValueError(f"of {name} there is {', '.join(sizes[name])}, but no {WEIGHT}")
            numel = sizes[name][WEIGHT]
            if set(sizes[name].values()) != {numel}:
                raise ValueError(f"the tensors of {name} differ in length: {sizes[name]}")
            if self.shapes.setdefault(name, tuple(shape)) != tuple(shape):
                raise ValueError(f"{name} is {shape}, in another file {self.shapes[name]}")
            self.kinds[name] |= sizes[name].keys()
            self._runs[name].append((start, start + numel, len(self._files)))
        self._files.append(file)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor:
        """Elements `start` to `start + numel` of a flattened parameter's tensor of that kind.

        Raises:
            ValueError: When they are not all there.
        """
        found, at, end = torch.empty(numel), start, start + numel
        for first, last, number in self._runs.get(name, []):
            if first <= at < min(last, end):
                upto = min(last, end)
                part = self._part(number, kind, name)[at - first : upto - first]
                # By NumPy: PyTorch's threads wait for one another longer than they copy.
                found.numpy()[at - start : upto - start] = part.numpy()
                at = upto
        if at < end:
            raise ValueError(
                f"{self.directory} holds no {kind} of {name} from element {at} to {end}"
            )
        return found

    def whole(self, kind: str, name: str) -> Tensor:
        """A parameter's tensor of that kind in its own shape.

        Raises:
            ValueError: When it is not all there.
        """
        if name not in self.shapes:
            raise ValueError(f"{self.directory} holds no {name}")
        shape = self.shapes[name]
        return self.read(kind, name, 0, torch.Size(shape).numel()).view(shape)

    @torch.no_grad()
    def fill(self, fragments: Sequence[StateFragment], parameters: set[str]) -> None:
        """Copy into `fragments` what is saved of them, whatever had cut it up.

        Raises:
            ValueError: When these are not the states of `parameters`, all of a model's.
        """
        for names, verb in ((parameters - set(self), "lacks"), (set(self) - parameters, "has")):
            if names:
                raise ValueError(
                    f"{self.directory} is not whole, or of another model: it {verb} "
                    f"{len(names)} parameters, such as {min(names)}"
                )
        for fragment in fragments:
            if (saved := self.shapes[fragment.name]) != fragment.shape:
                raise ValueError(
                    f"{self.directory}: {fragment.name} has shape {saved}, the model's is "
                    f"{fragment.shape}"
                )
            for kind, tensor in fragment.tensors.items():
                tensor.copy_(self.read(kind, fragment.name, fragment.start, fragment.numel))

    def _part(self, number: int, kind: str, name: str) -> Any:
        try:
            return self._files[number].get_slice(f"{kind}:{name}")
        except SafetensorError as error:
            raise ValueError(f"{self.directory} holds no {kind} of {name}") from error
