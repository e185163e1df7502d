"""Imports DeepSpeed without what training does not need: MLflow and PyTorch's compiler.

They are half of the CPU time from the start of a worker's process until its first step.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def import_deepspeed() -> ModuleType:
    """Import DeepSpeed, and what building an engine would import: seconds that nobody waits for in
    a worker that stands by.

    Where there are GPUs and they are not to be used, DS_ACCELERATOR=cpu must be set by now.
    """
    with _without_mlflow(), _without_compiling():
        import deepspeed

        with suppress(ImportError):  # Where they are does not matter: they are imported later then.
            import deepspeed.module_inject.auto_ep_layer
            import deepspeed.runtime.zero.muon.muon_optimizer
    for method in (torch.optim.Optimizer.add_param_group, torch.optim.Optimizer.zero_grad):
        _leave_to_python(method)
    # On CPUs DeepSpeed would compile an operation on every node for a collective that only
    # inference uses, and a killed worker would leave its 69 MB buffer in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """Have an import of MLflow fail, which DeepSpeed's autotuner is prepared for."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["mlflow"]


@contextmanager
def _without_compiling() -> Iterator[None]:
    """Leave functions that are decorated with `torch.compile`, those of Muon, as they are: the
    decorator imports the compiler at once.
    """

    def as_it_is(function: Function) -> Function:
        return function

    decorator = torch.compile
    torch.compile = as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = decorator


def _leave_to_python(method: Callable[..., Any]) -> None:
    """Tell PyTorch that this method is not compiled. To find out how to keep the compiler out of
    it, PyTorch would import the compiler at the first call.
    """
    function = getattr(method, "__wrapped__", None)
    if function is not None:
        function.__dynamo_disable = function
