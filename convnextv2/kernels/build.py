"""Loads the CPU kernels, which are compiled for this machine on first use."""

import ctypes
import logging
import os
import subprocess
from functools import cache
from pathlib import Path

from convnextv2.kernels.compiler import built

FOLDER = Path(__file__).parent
SOURCES = [FOLDER / name for name in ("native.cpp", "depthwise.h", "pointwise.h", "vectors.h")]
SWITCH = "CONVNEXTV2_KERNELS"

log = logging.getLogger(__name__)


def turned_off() -> bool:
    """Whether the environment asks for plain PyTorch everywhere."""
    return os.environ.get(SWITCH) == "plain"


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None if they cannot be compiled; the reason is logged once.

    CONVNEXTV2_KERNELS=plain in the environment turns off these kernels and those for GPUs.
    """
    if turned_off():
        return None
    # Imported first, so that the kernels are linked to the OpenMP library of PyTorch.
    import torch  # noqa: F401

    try:
        return ctypes.CDLL(str(built("kernels", SOURCES, ["-fopenmp"])))
    except (OSError, subprocess.SubprocessError) as error:
        details = getattr(error, "stderr", None) or error
        log.warning("no compiled CPU kernels, training will be slower: %s", details)
        return None
