"""The set-up that a worker can do in advance, so that a start does not wait for it."""

import os

from cluster.engine.deepspeed_engine import import_deepspeed
from convnextv2.kernels.build import library
from convnextv2.kernels.compiler import cache_folder


def prepare() -> None:
    """Import DeepSpeed and the training loop, and compile and load the CPU kernels.

    A spare worker must not touch a GPU, nor join a process group.
    """
    # PyTorch by itself keeps compiled code and pickles in a folder of /tmp that anybody can make.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    from pipelines.training import loop  # noqa: F401

    import_deepspeed()
    library()
