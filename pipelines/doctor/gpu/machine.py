"""Part `machine`: what is here, and whether any of it forbids the rest."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata

from pipelines.doctor.gpu.parts import Row, Setting, Unusable

LIBRARIES = ("triton", "deepspeed", "ray", "ffcv", "spconv", "timm", "numba", "pydantic")
LEAST_CAPABILITY = (8, 0)
DRY_RUN = "--device cpu --quick makes a dry run"
GIB = 1 << 30
OWN_CONTEXT = 1.5
"""GiB that a process takes by having opened the GPU, and some more."""


def machine(setting: Setting) -> Iterator[Row]:
    """Versions, the device, who else is on it.

    Raises:
        Unusable: When there is no GPU, or one that is too old, or so is its driver.
    """
    import torch

    yield Row(
        "host",
        {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda or "none",
            "cores": float(os.cpu_count() or 1),
        },
    )
    yield Row("libraries", {name: _version(name) for name in LIBRARIES})
    if not setting.on_gpu:
        return
    _open()
    properties = torch.cuda.get_device_properties(0)
    refuse_old(properties.name, (properties.major, properties.minor))
    free, total = torch.cuda.mem_get_info()
    yield Row(
        "GPU",
        {
            "name": properties.name,
            "driver": _driver(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": float(properties.multi_processor_count),
            "GiB": total / GIB,
            "free GiB": free / GIB,
            "cuDNN": str(torch.backends.cudnn.version()),
        },
        taken_by_others(free / GIB, total / GIB),
    )


def _open() -> None:
    import torch

    if torch.version.cuda is None:
        raise Unusable(
            f"no GPU can be used: this PyTorch ({torch.__version__}) was built without CUDA; "
            f"install a CUDA build, or {DRY_RUN}"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        # PyTorch's own words tell a missing driver from one that is too old.
        raise Unusable(f"no GPU can be used: {str(error).split('. ')[0]}; {DRY_RUN}") from error


def refuse_old(name: str, capability: tuple[int, int]) -> None:
    """Raise Unusable for a GPU without bf16 matrix units."""
    if capability < LEAST_CAPABILITY:
        raise Unusable(
            f"{name} has compute capability {capability[0]}.{capability[1]}; bf16 training and "
            "the kernels need 8.0 (A100) or newer"
        )


def taken_by_others(free: float, total: float) -> str:
    """Words for memory (GiB) in use by other processes; none when it is as good as free."""
    taken = total - free - OWN_CONTEXT
    if taken < 0.02 * total:
        return ""
    return (
        f"other processes use about {taken:.0f} of its {total:.0f} GiB: stop them (nvidia-smi "
        "lists them), or the figures below mean little"
    )


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.split("\n")[0].strip() or "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
