"""Part `calibration`: the peak rates of this device, to which the other figures are compared."""

from collections.abc import Iterator

import torch

from pipelines.doctor.gpu.parts import Row, Setting
from pipelines.doctor.gpu.timing import seconds_of

COPY, MATRIX = "copy", "matrix"
BANDWIDTH, BF16_RATE = f"{COPY} TB/s", f"{MATRIX} bf16 TFLOP/s"
"""Keys of `Setting.rates`."""


def calibration(setting: Setting) -> Iterator[Row]:
    """Copy bandwidth (read + written), FLOP/s of matrix products, bandwidth from the host."""
    device = torch.device(setting.device)
    yield Row(COPY, {"TB/s": copy_rate(1 << (20 if setting.quick else 28), device) / 1e12})
    side = 256 if setting.quick else 8192
    rates = {
        "bf16 TFLOP/s": matrix_rate(side, torch.bfloat16, device) / 1e12,
        "fp32 TFLOP/s": matrix_rate(side, torch.float32, device) / 1e12,
    }
    yield Row(MATRIX, {**rates})
    if setting.on_gpu:
        speeds = {
            "pinned GB/s": host_rate(1 << 28, device, pinned=True) / 1e9,
            "pageable GB/s": host_rate(1 << 28, device, pinned=False) / 1e9,
        }
        yield Row("host to device", {**speeds})


def copy_rate(elements: int, device: torch.device) -> float:
    """Bytes read and written per second by a copy of fp32."""
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    return 8 * elements / seconds_of(lambda: target.copy_(source), device, calls=5)


def matrix_rate(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of square matrix products of random numbers, because zeros are faster."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device, calls=3)


def host_rate(size: int, device: torch.device, *, pinned: bool) -> float:
    """Bytes per second of a copy to the device from page-locked or ordinary memory."""
    host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned).random_()
    return size / seconds_of(lambda: host.to(device, non_blocking=True), device)
