"""`make bench-model`: FCMAE by backend and size, and our dense model beside timm's and HF's.

Every measurement runs in a process of its own, so that the peak memory is that of one model. The
models of a comparison take turns, so that changes in the machine's speed affect all of them. The
peak rate, that of a plain matrix product, is measured between the steps in the same process. CPUs
compute in fp32, GPUs (`--device cuda`) in bf16.
"""

import argparse
import json
import os
import resource
import statistics
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cluster.placement import KEEP_PAGES
from pipelines.bench.device import add_device_option, name_of, seconds_on
from pipelines.bench.processes import figures_of
from pipelines.bench.results import add_output_options, origin, publish
from pipelines.bench.turns import median_ratio, take_turns

if TYPE_CHECKING:
    from torch import nn

IMAGE_SIZE, CLASSES = 224, 1000
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
# Warm-up steps, timed steps, side of the matrix product. On a GPU the first steps compile and
# select kernels.
REPEATS = {"cpu": (2, 5, 2048), "cuda": (10, 30, 8192)}
BACKENDS = ("gather", "spconv", "masked-dense")
DENSE = ("ours", "timm", "hf")


Comparison = dict[str, dict[str, float]]
"""By kind of model: the figures of `measure`, and how much faster the first kind is."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.model", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["atto", "pico", "tiny"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3, help="processes per figure")
    add_device_option(parser)
    add_output_options(parser, "bench-model.json")
    options = parser.parse_args()
    device = name_of(options.device)
    shape = {"batch": options.batch, "threads": options.threads}
    started = {**origin(), "device": device, "dtype": DTYPES[options.device]}
    fcmae, dense = (
        {
            size: compare(size, kinds, options.turns, device=options.device, **shape)
            for size in options.sizes
        }
        for kinds in (BACKENDS, DENSE)
    )
    results = {**started, "image_size": IMAGE_SIZE, **shape, "fcmae": fcmae, "dense": dense}

    def show() -> None:
        setting = f"{IMAGE_SIZE} px, {DTYPES[options.device]}, batch {options.batch}, " + (
            f"{options.threads} threads" if device == "cpu" else device
        )
        for title, rows in (("FCMAE, mask 0.6", fcmae), ("classifier, dense", dense)):
            Console().print(table(f"{title}: forward + backward, {setting}", rows))

    publish(results, options, show)


def compare(
    size: str, kinds: tuple[str, ...], turns: int, *, batch: int, threads: int, device: str
) -> Comparison:
    """Medians over the turns of each kind, and the median ratio to the first kind's speed."""
    contenders = {
        kind: partial(_in_own_process, kind, size, batch=batch, threads=threads, device=device)
        for kind in kinds
    }
    runs = take_turns(contenders, turns)
    rates = {kind: [run["images_per_second"] for run in own] for kind, own in runs.items()}
    return {
        kind: {
            **{figure: statistics.median(run[figure] for run in own) for figure in own[0]},
            "first_is_faster_by": median_ratio(rates[kinds[0]], rates[kind]),
        }
        for kind, own in runs.items()
    }


def _in_own_process(
    kind: str, size: str, *, batch: int, threads: int, device: str
) -> dict[str, float]:
    call = f"measure({kind!r}, {size!r}, {batch}, {threads}, {device!r})"
    code = f"from pipelines.bench.model import measure; {call}"
    environment = {**KEEP_PAGES, "HF_HUB_OFFLINE": "1"}
    return figures_of(f"{kind} {size}", "-c", code, environment=environment)


def measure(kind: str, size: str, batch: int, threads: int, device: str) -> None:
    """Print the figures of one model, from training steps after a warm-up.

    They are, for forward + backward: images/s; the share of the matrix product's rate, and that
    rate in GFLOP/s ("sgemm", in the model's precision); peak memory above the start, in MB.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    where = torch.device(device)
    step, macs = build(kind, size, batch, device)
    warm_up, steps, side = REPEATS[device]
    square = torch.randn(side, side).to(where, getattr(torch, DTYPES[device]))
    for _ in range(3):
        # The buffers of the matrix product must not count as the model's memory.
        square @ square
    before = _peak_mb(device)
    seconds, rates = [], []
    for turn in range(warm_up + steps):
        took, product = (seconds_on(where, act) for act in (step, lambda: square @ square))
        if turn >= warm_up:
            seconds.append(took)
            rates.append(2 * side**3 / product / 1e9)
    speed, sgemm = batch / statistics.median(seconds), statistics.median(rates)
    figures = {
        "images_per_second": speed,
        "share": 3 * 2 * macs * speed / 1e9 / sgemm,
        "sgemm": sgemm,
        "peak_mb": _peak_mb(device) - before,
    }
    print(json.dumps(figures))


def build(
    kind: str, size: str, batch: int, device: str = "cpu"
) -> tuple[Callable[[], None], float]:
    """One training step (forward, backward) of `kind`, and its multiply-adds per image."""
    import torch

    from pipelines.bench.flops import encoder_macs, fcmae_macs

    where, dtype = torch.device(device), getattr(torch, DTYPES[device])
    images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE).to(where, dtype)
    labels = (torch.arange(batch) % CLASSES).to(where)
    if kind in BACKENDS:
        from convnextv2.fcmae import FCMAE

        fcmae = FCMAE.from_size(size, image_size=IMAGE_SIZE, backend=kind)  # type: ignore[arg-type]
        fcmae.to(where, dtype)
        # Masks are drawn on the CPU, as in training, so that the host never waits for the GPU.
        generator = torch.Generator().manual_seed(0)

        def pretraining_step() -> None:
            fcmae.zero_grad()
            fcmae(images, generator=generator, prediction="masked").loss.backward()

        return pretraining_step, fcmae_macs(size, fcmae)
    model = build_dense(kind, size).to(where, dtype)
    if device == "cuda":
        # timm and Hugging Face recommend it for convolutions on GPUs; our model uses it anyway.
        images = images.to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)

    def classifying_step() -> None:
        model.zero_grad()
        scores = model(images)
        logits = getattr(scores, "logits", scores).float()
        torch.nn.functional.cross_entropy(logits, labels).backward()

    return classifying_step, encoder_macs(size, IMAGE_SIZE)


def build_dense(kind: str, size: str) -> "nn.Module":
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


def _peak_mb(device: str) -> float:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(title: str, sizes: dict[str, Comparison]) -> Table:
    """A table with a row for every kind of every size."""
    shown = Table(
        *("size", "kind", "images/s", "of sgemm", "peak MB", "first is faster by"), title=title
    )
    for size, kinds in sizes.items():
        for kind, f in kinds.items():
            shown.add_row(
                size,
                kind,
                f"{f['images_per_second']:.1f}",
                f"{f['share']:.0%} of {f['sgemm']:.0f}",
                f"{f['peak_mb']:.0f}",
                f"{f['first_is_faster_by']:.2f} x",
            )
    return shown


if __name__ == "__main__":
    main()
