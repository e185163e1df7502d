"""A machine with a GPU, for all processes that have this folder in PYTHONPATH.

GPU_MACHINE in the environment says what is wrong with it, as JSON: "init" and "set_device" are what
PyTorch raises there; "capability" and "free" (GiB) are the GPU's; "missing" is a module that cannot
be imported. Groups of workers use gloo in the place of NCCL.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

MACHINE: dict[str, Any] = json.loads(os.environ.get("GPU_MACHINE", "{}"))
TOTAL = 79.2


def change_cuda(cuda: ModuleType) -> None:
    major, minor = MACHINE.get("capability", (9, 0))
    gpu = SimpleNamespace(name="Tesla Made-up", major=major, minor=minor, multi_processor_count=132)
    memory = int(MACHINE.get("free", TOTAL - 1) * 2**30), int(TOTAL * 2**30)
    vars(cuda).update(
        init=lambda: fail("init"),
        set_device=lambda number: fail("set_device"),
        current_device=lambda: 0,
        get_device_properties=lambda device: gpu,
        mem_get_info=lambda device=None: memory,
    )


def change_groups(groups: ModuleType) -> None:
    begin: Callable[..., None] = groups.init_process_group
    vars(groups).update(init_process_group=lambda backend, **more: begin("gloo", **more))


def fail(where: str) -> None:
    if where in MACHINE:
        raise RuntimeError(MACHINE[where])


CHANGES = {"torch.cuda": change_cuda, "torch.distributed.distributed_c10d": change_groups}


class Changing(Loader):
    """Loads a module as `loader` does, and changes it."""

    def __init__(self, loader: Loader, change: Callable[[ModuleType], None]) -> None:
        self.loader, self.change = loader, change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.change(module)


class Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in CHANGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = Changing(spec.loader, CHANGES[name])
        return spec


if MACHINE:
    sys.meta_path.insert(0, Finder())
    sys.modules |= dict.fromkeys(MACHINE.get("missing", ()))
