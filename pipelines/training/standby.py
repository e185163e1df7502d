"""What a worker can do before it is needed, so that a start does not wait for it."""

from cluster.engine.deepspeed_engine import import_deepspeed
from convnextv2.kernels.build import library


def prepare() -> None:
    """Import DeepSpeed and the training loop, and load the CPU kernels, compiled if need be.

    A worker that stands by must not touch a GPU, nor join a group.
    """
    from pipelines.training import loop  # noqa: F401

    import_deepspeed()
    library()
