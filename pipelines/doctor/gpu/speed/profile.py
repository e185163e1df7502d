"""Part `profile`: the kernels of a pretraining step, their number and their times."""

from collections.abc import Iterator

import torch

from pipelines.doctor.gpu.parts import Row, Setting
from pipelines.doctor.gpu.speed.steps import Step, batch_of, fcmae
from pipelines.doctor.gpu.timing import synchronize

TOP = 14


def profile(setting: Setting) -> Iterator[Row]:
    """Profile a step of a size bound by the device and of one bound by kernel launches."""
    side = 64 if setting.quick else 224
    for size in ("base", "atto"):
        if size in setting.sizes:
            step = fcmae(size, "gather", side, setting).build(batch_of(size, setting))
            yield Row(f"FCMAE {size} gather", kernels_of(step, setting))


def kernels_of(step: Step, setting: Setting) -> dict[str, float | str]:
    """The device's time in a step (ms), its launches, and the kernels that take longest."""
    kind = torch.profiler.ProfilerActivity
    device = torch.device(setting.device)
    for _ in range(1 if setting.quick else 3):
        step()
    synchronize(device)
    with torch.profiler.profile(activities=[kind.CUDA if setting.on_gpu else kind.CPU]) as profiler:
        step()
        synchronize(device)
    taken = "self_device_time_total" if setting.on_gpu else "self_cpu_time_total"
    found = {f"{e.key[:60]} x{e.count}": getattr(e, taken) for e in profiler.key_averages()}
    figures: dict[str, float | str] = {
        "ms": sum(found.values()) / 1e3,
        "launches": float(sum(event.count for event in profiler.key_averages())),
    }
    for name, microseconds in sorted(found.items(), key=lambda each: -each[1])[:TOP]:
        figures[name] = microseconds / 1e3
    return figures
