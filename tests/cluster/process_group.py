"""Processes of one gloo group, for tests of what workers do together."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_group(work: Callable[..., None], size: int, folder: Path, *arguments: object) -> None:
    """Run `work(*arguments)` on every worker of a new group; raises what a worker raised.

    `folder` is where the workers meet: new for every group.
    """
    mp.spawn(_enter, (size, folder / "rendezvous", work, arguments), nprocs=size)


def _enter(
    rank: int, size: int, rendezvous: Path, work: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    # A worker that waits for one that went another way must not wait for half an hour.
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=240),
    )
    work(*arguments)
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Python's own way out sometimes ends in an abort: DeepSpeed's globals hold groups to the last.
    os._exit(0)
