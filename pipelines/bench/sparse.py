"""FCMAE step, `gather` against `masked-dense`: images/s and peak memory.

Each figure comes from a process of its own, so that peak memory is that backend's; the two take
turns, so that a machine whose speed drifts treats both alike.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

SIZE, IMAGE_SIZE, BATCH, THREADS = "atto", 224, 16, 2
BACKENDS = ("gather", "masked-dense")


@dataclass(frozen=True)
class Figures:
    """images/s of forward + backward; MB of memory above what the process had before."""

    images_per_second: float
    peak_mb: float


def compare(pairs: int) -> dict[str, Any]:
    """Medians of `pairs` turns of both backends, and their ratios pair by pair."""
    turns = [{backend: _in_own_process(backend) for backend in BACKENDS} for _ in range(pairs)]
    table = {
        backend: asdict(
            Figures(
                statistics.median(turn[backend].images_per_second for turn in turns),
                statistics.median(turn[backend].peak_mb for turn in turns),
            )
        )
        for backend in BACKENDS
    }
    faster, slower = BACKENDS
    speed = [t[faster].images_per_second / t[slower].images_per_second for t in turns]
    memory = [t[faster].peak_mb / t[slower].peak_mb for t in turns]
    return {
        "what": f"FCMAE forward + backward, {SIZE}, {IMAGE_SIZE} px, batch {BATCH}, fp32, "
        f"{THREADS} threads",
        "backends": table,
        "speed_ratio": statistics.median(speed),
        "memory_ratio": statistics.median(memory),
        "pairs": pairs,
    }


def _in_own_process(backend: str) -> Figures:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.bench.sparse", backend],
        capture_output=True,
        text=True,
        check=True,
    )
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def measure(backend: str, steps: int = 5) -> Figures:
    """Time `steps` training steps after two to warm up."""
    import torch

    from convnextv2.fcmae import FCMAE

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = FCMAE.from_size(SIZE, image_size=IMAGE_SIZE, backend=backend)  # type: ignore[arg-type]
    images = torch.randn(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
    before = _peak_mb()
    seconds = []
    for _ in range(steps + 2):
        begin = time.perf_counter()
        model.zero_grad()
        model(images).loss.backward()
        seconds.append(time.perf_counter() - begin)
    return Figures(BATCH / statistics.median(seconds[2:]), _peak_mb() - before)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(json.dumps(asdict(measure(sys.argv[1]))))
