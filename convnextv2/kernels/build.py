"""Compiles the CPU kernels for this machine, once, and loads them.

The library is kept under a name that holds everything it depends on: the sources, the compiler and
the processor's instruction set. Nodes of a cluster that share a home folder do not share a build
unless they are alike, and a build is published by renaming: workers may race for it.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCES = ("native.cpp", "depthwise.h", "pointwise.h", "vectors.h")
# No -ffast-math: it would make every other library of the process flush denormals to zero.
FLAGS = (
    *("-O3", "-std=c++17", "-march=native", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
    *("-fopenmp", "-fPIC", "-shared", "-Wno-psabi"),
)
SWITCH = "CONVNEXTV2_KERNELS"

log = logging.getLogger(__name__)


def turned_off() -> bool:
    """Whether the environment asks for plain PyTorch everywhere."""
    return os.environ.get(SWITCH) == "plain"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None (said once, with the reason) where PyTorch must do.

    CONVNEXTV2_KERNELS=plain in the environment turns them off, and those for GPUs.
    """
    if turned_off():
        return None
    # PyTorch's OpenMP is in the process before ours is looked for, so that they are one.
    import torch  # noqa: F401

    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        details = getattr(error, "stderr", None) or error
        log.warning("no compiled CPU kernels, training will be slower: %s", details)
        return None


def _built() -> Path:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError("there is no C++ compiler; install g++ or set CXX")
    folder = Path(__file__).parent
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    key = hashlib.sha256(f"{version.stdout}{FLAGS}{_instructions()}".encode())
    for name in SOURCES:
        key.update((folder / name).read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convnextv2"
    target = home / f"kernels-{key.hexdigest()[:16]}.so"
    if not target.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            made = Path(scratch) / target.name
            command = [compiler, *FLAGS, str(folder / SOURCES[0]), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(target)
    return target


def _instructions() -> str:
    """What -march=native looks at: the processor's flags, else its name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    wanted = ("flags", "Features", "model name")
    found = {line for line in lines if line.startswith(wanted)}
    return "\n".join(sorted(found)) or f"{platform.machine()} {platform.processor()}"
