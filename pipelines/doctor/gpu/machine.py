"""Part `machine`: lists versions and hardware, and ends the check where no GPU can be used."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata

from cluster.gpu import GIB, UnusableGPU, open_gpu, taken_by_others
from pipelines.doctor.gpu.parts import Row, Setting, Unusable

LIBRARIES = ("triton", "deepspeed", "ray", "ffcv", "spconv", "timm", "numba", "pydantic")
DRY_RUN = "--device cpu --quick makes a dry run"


def machine(setting: Setting) -> Iterator[Row]:
    """Versions, the device, and what other processes use of it.

    Raises:
        Unusable: When there is no GPU, or it or its driver is too old.
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
    try:
        device = open_gpu()
    except UnusableGPU as error:
        raise Unusable(f"{error}; {DRY_RUN}") from error
    properties = torch.cuda.get_device_properties(device)
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
        _in_use(free / GIB, total / GIB),
    )


def _in_use(free: float, total: float) -> str:
    others = taken_by_others(free, total)
    return f"{others}: stop them, or the figures below mean little" if others else ""


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
