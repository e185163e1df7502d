"""The set-up that a worker can do in advance, so that a start does not wait for it.

Imports are in the function, because the driver, which only names it, does not need them.
"""

import os


def prepare(job: object) -> None:
    """Import what `job` needs, load numba, and compile and load the CPU kernels.

    A spare worker must not touch a GPU, nor join a process group. The modules of the functions in
    `job` have been imported when this is called, to unpickle it.
    """
    from convnextv2.data.ffcv_compat import load_numba
    from convnextv2.kernels.build import library
    from convnextv2.kernels.compiler import cache_folder
    from pipelines.training.job import TrainJob

    # PyTorch by itself keeps compiled code and pickles in a folder of /tmp that anybody can make.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    if isinstance(job, TrainJob):
        from cluster.engine.deepspeed_import import import_deepspeed
        from pipelines.training import loop  # noqa: F401

        import_deepspeed()
        if job.recipe.compile or job.cluster.zero.stage == 3:
            # ZeRO-3 needs PyTorch's compiler, too, to keep it out of its hooks.
            import torch._dynamo  # noqa: F401
    load_numba()
    library()
