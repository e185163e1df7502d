"""Compiles C++ for this machine, once.

A library's file name contains a hash of everything that it depends on: the sources, the compiler
and the processor's instruction set. Different nodes of a cluster can therefore share a home folder.
A library is compiled in a temporary folder and then renamed, so that several workers can compile
the same one at once.
"""

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from convnextv2 import PathLike

# No -ffast-math: it would make every other library of the process flush denormals to zero.
FLAGS = (
    *("-O3", "-std=c++17", "-march=native", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
    *("-fPIC", "-shared", "-Wno-psabi"),
)


def built(name: str, sources: Sequence[PathLike], flags: Sequence[str] = ()) -> Path:
    """Return the shared library made from `sources`, of which the first includes the others.

    Raises:
        OSError: When there is no compiler.
        subprocess.CalledProcessError: When compiling fails; `stderr` has the compiler's messages.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError("there is no C++ compiler; install g++ or set CXX")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    key = hashlib.sha256(f"{version.stdout}{FLAGS}{flags}{_instructions()}".encode())
    for source in sources:
        key.update(Path(source).read_bytes())
    home = cache_folder()
    target = home / f"{name}-{key.hexdigest()[:16]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            made = Path(scratch) / target.name
            command = [compiler, *FLAGS, str(sources[0]), *flags, "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(target)
    return target


def cache_folder() -> Path:
    """Where compiled code of this project is kept; nobody else may write there, for it is run.

    Raises:
        PermissionError: When it is another user's folder.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = caches / "convnextv2"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(
            f"compiled code is not kept in {folder}: another user owns it, and could put code "
            "there; set XDG_CACHE_HOME to a folder of yours"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        folder.chmod(stat.S_IMODE(status.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
    return folder


def _instructions() -> str:
    """What -march=native depends on: the processor's flags, or else its name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    wanted = ("flags", "Features", "model name")
    found = {line for line in lines if line.startswith(wanted)}
    return "\n".join(sorted(found)) or f"{platform.machine()} {platform.processor()}"
