"""`make bench-model`: FCMAE by backend and size, and our dense model beside timm's and HF's.

Every figure comes from a process of its own, so that peak memory is that model's; the models of a
comparison take turns, so that a machine whose speed drifts treats all alike; the speed of the plain
matrix product, which is the ceiling, is measured between the steps of the very same process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.placement import KEEP_PAGES
from pipelines.runtime.provenance import git_commit, versions

IMAGE_SIZE, CLASSES = 224, 1000
BACKENDS = ("gather", "spconv", "masked-dense")
DENSE = ("ours", "timm", "hf")


@dataclass(frozen=True)
class Figures:
    """Forward + backward: images/s; share of the sgemm rate; GFLOP/s; peak MB above the start."""

    images_per_second: float
    share: float
    sgemm: float
    peak_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.model", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["atto", "pico", "tiny"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3, help="processes per figure")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-model.json"))
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    shape = {"batch": options.batch, "threads": options.threads}
    results = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": git_commit(),
        "versions": versions(),
        "image_size": IMAGE_SIZE,
        **shape,
        "fcmae": {s: compare(s, BACKENDS, options.turns, **shape) for s in options.sizes},
        "dense": {s: compare(s, DENSE, options.turns, **shape) for s in options.sizes},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        show(results)
        Console().print(f"written to {options.output}")


def compare(
    size: str, kinds: tuple[str, ...], turns: int, *, batch: int, threads: int
) -> dict[str, dict[str, float]]:
    """Medians over the turns of each kind, with the speed against the first kind pair by pair."""
    rounds = [
        {kind: _in_own_process(kind, size, batch, threads) for kind in kinds} for _ in range(turns)
    ]
    table = {}
    for kind in kinds:
        row = {
            field: statistics.median(getattr(figures[kind], field) for figures in rounds)
            for field in Figures.__dataclass_fields__
        }
        row["first_is_faster_by"] = statistics.median(
            figures[kinds[0]].images_per_second / figures[kind].images_per_second
            for figures in rounds
        )
        table[kind] = row
    return table


def _in_own_process(kind: str, size: str, batch: int, threads: int) -> Figures:
    call = f"from pipelines.bench.model import measure; measure({kind!r}, {size!r}, {batch}, "
    done = subprocess.run(
        [sys.executable, "-c", f"{call}{threads})"],
        capture_output=True,
        text=True,
        env={**os.environ, **KEEP_PAGES, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"{kind} {size}: {done.stderr[-2000:]}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def measure(kind: str, size: str, batch: int, threads: int, steps: int = 5) -> None:
    """Print the figures of one model: `steps` training steps after two to warm up."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step, macs = build(kind, size, batch)
    square = torch.randn(2048, 2048)
    for _ in range(3):
        # The ceiling's own buffers are no part of the model's memory.
        square @ square
    before = _peak_mb()
    seconds, rates = [], []
    for turn in range(steps + 2):
        begin = time.perf_counter()
        step()
        middle = time.perf_counter()
        square @ square
        if turn >= 2:
            seconds.append(middle - begin)
            rates.append(2 * 2048**3 / (time.perf_counter() - middle) / 1e9)
    speed, sgemm = batch / statistics.median(seconds), statistics.median(rates)
    share = 3 * 2 * macs * speed / 1e9 / sgemm
    print(json.dumps(asdict(Figures(speed, share, sgemm, _peak_mb() - before))))


def build(kind: str, size: str, batch: int) -> tuple[Callable[[], None], float]:
    """One training step (forward, backward) of `kind`, and its multiply-adds per image."""
    import torch

    from pipelines.bench.flops import encoder_macs, fcmae_macs

    images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE)
    labels = torch.arange(batch) % CLASSES
    if kind in BACKENDS:
        from convnextv2.fcmae import FCMAE

        fcmae = FCMAE.from_size(size, image_size=IMAGE_SIZE, backend=kind)  # type: ignore[arg-type]

        def pretraining_step() -> None:
            fcmae.zero_grad()
            fcmae(images, prediction="masked").loss.backward()

        return pretraining_step, fcmae_macs(size, fcmae)
    model = build_dense(kind, size)

    def classifying_step() -> None:
        model.zero_grad()
        scores = model(images)
        torch.nn.functional.cross_entropy(getattr(scores, "logits", scores), labels).backward()

    return classifying_step, encoder_macs(size, IMAGE_SIZE)


def build_dense(kind: str, size: str) -> Any:
    """The classifier of that size: ours, timm's or Hugging Face's."""
    if kind == "ours":
        from convnextv2.encoder import ConvNeXtV2

        return ConvNeXtV2.from_size(size, num_classes=CLASSES)
    if kind == "timm":
        import timm

        return timm.create_model(f"convnextv2_{size}", num_classes=CLASSES)
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    from convnextv2.sizes import size_of

    chosen = size_of(size)
    return ConvNextV2ForImageClassification(
        ConvNextV2Config(
            depths=list(chosen.depths), hidden_sizes=list(chosen.dims), num_labels=CLASSES
        )
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(results: dict[str, Any]) -> None:
    """The figures as a table."""
    for part, title in (("fcmae", "FCMAE, mask 0.6"), ("dense", "classifier, dense")):
        table = Table(
            *("size", "kind", "images/s", "of sgemm", "peak MB", "first is faster by"),
            title=f"{title}: forward + backward, {results['image_size']} px, fp32, batch "
            f"{results['batch']}, {results['threads']} threads",
        )
        for size, kinds in results[part].items():
            for kind, f in kinds.items():
                table.add_row(
                    size,
                    kind,
                    f"{f['images_per_second']:.1f}",
                    f"{f['share']:.0%} of {f['sgemm']:.0f}",
                    f"{f['peak_mb']:.0f}",
                    f"{f['first_is_faster_by']:.2f} x",
                )
        Console().print(table)


if __name__ == "__main__":
    main()
