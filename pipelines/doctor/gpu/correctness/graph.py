"""Part `graph`: compares training steps with CUDA graphs to eager ones, in losses and speed."""

from collections.abc import Iterator

import torch

from pipelines.doctor.gpu.correctness.zero import (
    RATE,
    build_engine,
    deepspeed_missing,
    one_step,
)
from pipelines.doctor.gpu.parts import Row, Setting, Skipped
from pipelines.doctor.gpu.timing import seconds_of
from pipelines.doctor.gpu.workload import random_pixels

STEPS = 5
CASES = (("atto", 224, 64), ("atto", 224, 512), ("base", 224, 64))
"""Model, image size (px), micro batch: from a step bound by the host to one bound by the GPU."""
QUICK_CASES = (("pocket", 64, 8),)


def graph(setting: Setting) -> Iterator[Row]:
    """Compare losses and speed in ZeRO stages 1 and 2, bf16, with two micro batches a step.

    Every step has new pixels, so that a graph that reads those of an earlier step is detected.
    """
    why = deepspeed_missing()
    if not setting.on_gpu:
        why = "CUDA graphs are for GPUs"
    if why:
        raise Skipped(why)
    device = torch.device(setting.device)
    for size, side, batch in QUICK_CASES if setting.quick else CASES:
        for stage in (1, 2):
            yield compare(stage, size, side, batch, device)


def compare(stage: int, size: str, side: int, batch: int, device: torch.device) -> Row:
    """Run the two engines one after the other: losses of some steps, then images/s."""
    losses: dict[str, list[float]] = {}
    rates: dict[str, float] = {}
    for name in ("eager", "graph"):
        engine = build_engine(stage, "bf16", size, side, batch, device, cuda_graph=name == "graph")
        batches = [random_pixels(batch, side, device, seed) for seed in range(STEPS)]
        losses[name] = [one_step(engine, pixels) for pixels in batches]
        pixels = batches[0]
        seconds = seconds_of(
            lambda e=engine, p=pixels: e.train_step([p, p], RATE),  # type: ignore[misc]
            device,
            rounds=3,
            calls=10,
        )
        rates[name] = 2 * batch / seconds
        del engine
    spread = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    figures = {
        "eager images/s": rates["eager"],
        "graph images/s": rates["graph"],
        "times faster": rates["graph"] / rates["eager"],
        "largest difference": spread,
    }
    same = losses["graph"] == losses["eager"]
    problem = "" if same else f"losses are {losses['graph']}, and {losses['eager']} in eager mode"
    return Row(f"{size} {side} px, batch {batch}, stage {stage}", {**figures}, problem)
