"""The set-up that a worker can do in advance, so that a start does not wait for it."""

from cluster.engine.deepspeed_engine import import_deepspeed
from convnextv2.kernels.build import library


def prepare() -> None:
    """Import DeepSpeed and the training loop, and compile and load the CPU kernels.

    A spare worker must not touch a GPU, nor join a process group.
    """
    from pipelines.training import loop  # noqa: F401

    import_deepspeed()
    library()
