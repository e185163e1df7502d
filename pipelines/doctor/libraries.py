"""Checks that import libraries, which may crash or hang: in an interpreter of their own."""

import re
import shutil
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

from pipelines.doctor.check import SET_UP, Check
from pipelines.doctor.interpreter import Interpreter
from pipelines.doctor.processes import run

PINS = Path(__file__).parents[2] / "constraints.txt"
PINNED = ("torch", "torchvision", "deepspeed", "ray", "ffcv", "spconv", "mlflow", "numba", "numpy")
OPTIONAL = {
    "spconv": "only for the backend spconv: pip install 'convnextv2[spconv]' "
    "(for NVIDIA GPUs spconv-cu126 instead)"
}


def library(name: str, interpreter: Interpreter) -> Check:
    same_module = re.compile(f"{name}(-cu[0-9]+)?")  # spconv-cu126 is spconv, too
    builds = {d.name for d in metadata.distributions() if same_module.fullmatch(d.name)}
    if not builds and name in OPTIONAL:
        return Check(name, "warn", "not installed, and optional", OPTIONAL[name])
    if not builds:
        return Check(name, "fail", "not installed", SET_UP)
    version = metadata.version(builds.pop()).partition("+")[0]
    code, output = interpreter.run(f"import {name}")
    if code != 0:
        return Check(name, "fail", f"{version} does not import: {output}", SET_UP)
    if not PINS.exists():
        return Check(name, "warn", version, f"not compared: there is no {PINS}")
    pinned = re.search(rf"^{name}==(\S+)$", PINS.read_text(), re.MULTILINE)
    if pinned is None or pinned[1] != version:
        advice = f"tested with {pinned[1] if pinned else 'none'} ({PINS.name}): {SET_UP}"
        return Check(name, "warn", version, advice)
    return Check(name, "ok", version)


def gpus(interpreter: Interpreter) -> Check:
    listed = "0"
    if shutil.which("nvidia-smi"):
        code, listed = run("nvidia-smi", "--query-gpu=count", "--format=csv,noheader")
        if code != 0:
            return Check("GPUs", "fail", f"nvidia-smi: {listed}", "install or restart the driver")
    code, output = interpreter.run(
        "import torch; print(torch.cuda.device_count(), torch.version.cuda)"
    )
    if code != 0:
        return Check("GPUs", "fail", f"{listed}, but torch cannot say: {output}", SET_UP)
    seen, cuda = output.split()
    found = f"{listed} listed by nvidia-smi, {seen} seen by torch (CUDA {cuda})"
    if int(seen) < int(listed):
        advice = "check CUDA_VISIBLE_DEVICES, the driver's version, and that torch is a CUDA build"
        return Check("GPUs", "fail", found, advice)
    return Check("GPUs", "ok", found if int(seen) else "none: training runs on the CPU")


def ray_starts(interpreter: Interpreter) -> Check:
    code, output = interpreter.run(
        "from cluster.launch import Cluster, Placement\n"
        "with Cluster(Placement(num_workers=1, address='local')) as cluster:\n"
        "    print('one task answered', *cluster.map(abs, [-42]))"
    )
    if code != 0:
        advice = "the reason is in the newest session's logs, below /tmp or $RAY_TMPDIR"
        return Check("Ray", "fail", output, advice)
    return Check("Ray", "ok", output)


# A Ray that this doctor starts must not be reported as one that was there, so that comes last.
CHECKS: list[Callable[[Interpreter], Check]] = [
    *(partial(library, name) for name in PINNED),
    gpus,
    ray_starts,
]
