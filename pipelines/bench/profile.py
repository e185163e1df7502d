"""`python -m pipelines.bench.profile SIZE`: where the time of a pretraining step goes."""

import argparse
import os

import torch
from torch.profiler import profile

from pipelines.bench.model import build

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "GELU + GRN": ("_GeluGRN", "_GeluGRNBackward", "_LinearAfterGRN", "_LinearAfterGRNBackward"),
    "depthwise": ("_Depthwise", "_DepthwiseBackward"),
    "LayerNorm": ("_LayerNorm", "_LayerNormBackward", "aten::native_layer_norm"),
    "copies, additions, sums": (
        *("aten::copy_", "aten::add", "aten::add_", "aten::sum", "aten::fill_", "aten::index"),
        *("aten::index_select", "aten::index_copy_", "aten::where", "aten::mul", "aten::mul_"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.profile", description=__doc__)
    parser.add_argument("size")
    parser.add_argument("--kind", default="gather", help="a backend, or ours for the dense model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    step, _ = build(options.kind, options.size, options.batch)
    for _ in range(3):
        step()
    with profile() as profiled:
        for _ in range(options.steps):
            step()
    times = {e.key: e.self_cpu_time_total / 1e3 / options.steps for e in profiled.key_averages()}
    total = sum(times.values())
    for kind, names in KINDS.items():
        spent = sum(times.pop(name, 0.0) for name in names)
        print(f"{kind:26} {spent:8.1f} ms  {spent / total:4.0%}")
    rest = sum(times.values())
    print(f"{'all else':26} {rest:8.1f} ms  {rest / total:4.0%}")


if __name__ == "__main__":
    main()
