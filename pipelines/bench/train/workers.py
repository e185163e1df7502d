"""Groups of worker processes for the benchmark, set up as on a cluster, with gloo or NCCL.

Run as a program it is one worker: MEASUREMENT RANK WORLD THREADS MEETING DEVICE SETTINGS.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch

from cluster.placement import FEW_FRAGMENTS, KEEP_PAGES, NO_GPU

TIMEOUT = timedelta(minutes=10)
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def run_group(
    measurement: str,
    workers: int,
    settings: Mapping[str, object],
    *,
    threads: int = 1,
    keep_pages: bool = True,
    device: str = "cpu",
) -> list[dict[str, float]]:
    """Run a function of `measurements` in a group, and return the figures of rank 0.

    With `keep_pages`, freed memory stays with the process, as on a cluster: faster, but larger.

    Raises:
        RuntimeError: When a worker fails.
    """
    environment = FEW_FRAGMENTS if device == "cuda" else NO_GPU | (KEEP_PAGES if keep_pages else {})
    with tempfile.TemporaryDirectory(prefix="convnextv2-bench-") as folder:
        processes = [
            subprocess.Popen(
                [
                    sys.executable, "-W", "ignore", "-m", "pipelines.bench.train.workers",
                    measurement, str(rank), str(workers), str(threads), f"{folder}/meeting",
                    device, json.dumps(dict(settings)),
                ],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(workers)
        ]  # fmt: skip
        outputs = [process.communicate() for process in processes]
    for rank, (process, (_, errors)) in enumerate(zip(processes, outputs, strict=True)):
        if process.returncode:
            raise RuntimeError(f"worker {rank} of {measurement} failed:\n{errors[-2000:]}")
    rows: list[dict[str, float]] = json.loads(outputs[0][0].splitlines()[-1])
    return rows


def main() -> None:
    """Join the group and measure."""
    from pipelines.bench.train import measurements

    name, rank, world, threads, meeting, device, settings = sys.argv[1:]
    torch.set_num_threads(int(threads))
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= local | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": threads}
    if device == "cuda":
        torch.cuda.set_device(int(rank))
    torch.distributed.init_process_group(
        BACKENDS[device],
        init_method=f"file://{Path(meeting)}",
        rank=int(rank),
        world_size=int(world),
        timeout=TIMEOUT,
    )
    result = getattr(measurements, name)(**json.loads(settings))
    print(json.dumps(result))
    sys.stdout.flush()
    # A normal exit of Python sometimes aborts: DeepSpeed's globals keep process groups alive.
    os._exit(0)


if __name__ == "__main__":
    main()
