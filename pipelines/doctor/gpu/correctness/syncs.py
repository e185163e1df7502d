"""Part `syncs`: how often a step makes the host wait for the device, and where."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from convnextv2.fcmae import FCMAE
from pipelines.doctor.gpu.correctness.zero import build_engine, deepspeed_missing
from pipelines.doctor.gpu.parts import Row, Setting, Skipped
from pipelines.doctor.gpu.workload import Pretraining, random_pixels

WAITS = ((torch.cuda, "synchronize"), (torch.cuda.Event, "synchronize"),
         (torch.cuda.Stream, "synchronize"))  # fmt: skip
"""Explicit synchronisation, which PyTorch's sync debug mode does not report."""
OTHER_ENGINES = ((1, "fp32"), (2, "bf16"), (0, "fp32"), (3, "bf16"))
"""ZeRO stage and precision of the engines that are measured on a small model."""


def syncs(setting: Setting) -> Iterator[Row]:
    """Waits in forward + backward, and in a step of the engine where DeepSpeed is installed.

    In stage 3 DeepSpeed itself waits (docs/gpu.md), so its row is no failure.
    """
    if not setting.on_gpu:
        raise Skipped("on a CPU there is no device to wait for")
    device = torch.device(setting.device)
    small = "pocket", 64, 8
    size, side, batch = small if setting.quick else ("atto", 224, 64)
    pixels = random_pixels(batch, side, device)
    task = Pretraining(FCMAE.from_size(size, image_size=side).to(device, torch.bfloat16))
    task.to(device)
    yield counted("forward + backward", lambda: task(pixels).loss.backward())
    why = deepspeed_missing()
    if why:
        yield Row("engine step", {"not counted": why})
        return
    yield engine_row(1, "bf16", size, side, batch, device)
    for stage, precision in OTHER_ENGINES:
        row = engine_row(stage, precision, *small, device)
        yield replace(row, problem="") if stage == 3 else row


def engine_row(
    stage: int, precision: str, size: str, side: int, batch: int, device: torch.device
) -> Row:
    engine = build_engine(stage, precision, size, side, batch, device)
    pixels = random_pixels(batch, side, device)
    name = f"engine step, stage {stage} {precision}"
    return counted(name, lambda: engine.train_step([pixels, pixels], 1e-3))


def counted(name: str, step: Callable[[], object]) -> Row:
    """Count the waits of one step, after two warm-up steps."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    places = waits_of(step)
    listed = ", ".join(f"{place} x{times}" for place, times in places.most_common())
    total = sum(places.values())
    problem = f"the host waits {total} times in a step" if total else ""
    return Row(name, {"waits": float(total), "at": listed or "nowhere"}, problem)


def waits_of(step: Callable[[], object]) -> Counter[str]:
    """Where (file:line) a step waits, and how often."""
    places: Counter[str] = Counter()
    originals = [(owner, name, getattr(owner, name)) for owner, name in WAITS]

    def noting(name: str, wait: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object, **named: object) -> object:
            places[f"{name}()"] += 1
            return wait(*arguments, **named)

        return noted

    torch.cuda.set_sync_debug_mode("warn")
    try:
        for owner, name, wait in originals:
            setattr(owner, name, noting(f"{owner.__name__}.{name}", wait))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        for owner, name, wait in originals:
            setattr(owner, name, wait)
    for warning in caught:
        if "synchroniz" in str(warning.message):
            places[f"{os.path.basename(warning.filename)}:{warning.lineno}"] += 1
    return places
