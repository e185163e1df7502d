"""From an image collection to batches: sources, .beton shards, order, views, loading."""

import hashlib
import os
from pathlib import Path

import numba
import numba.typed
import torch

from convnextv2.kernels.compiler import cache_folder


def _keep_compiled_code() -> None:
    """Have numba keep code where all sources are part of the name.

    It looks for changes in the file of a function only, not in those of the functions it calls.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    folder = Path(__file__).parent
    for path in sorted([*folder.rglob("*.py"), folder.parent / "randomness.py"]):
        digest.update(path.read_bytes())
    numba.config.CACHE_DIR = str(cache_folder() / f"numba-{digest.hexdigest()[:16]}")


if "NUMBA_CACHE_DIR" not in os.environ:
    _keep_compiled_code()

# FFCV keeps a numba dictionary of two words that only Python reads; compiling it costs every
# process seconds at import. A plain one does. Its import also sets PyTorch's threads to one.
_Dict, numba.typed.Dict = numba.typed.Dict, dict
_threads = torch.get_num_threads()
try:
    import ffcv  # noqa: F401
finally:
    numba.typed.Dict = _Dict
    torch.set_num_threads(_threads)
