"""Part `speed`: images/s of training steps by size and backend, beside timm's dense model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import nn

from cluster.gpu import GIB
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.sparse import Backend
from convnextv2.kernels.gpu import triton_missing
from convnextv2.memory import Kernels, activation_bytes, parameter_count
from convnextv2.memory import Step as Forward
from pipelines.bench.flops import encoder_macs, fcmae_macs, peak_of
from pipelines.doctor.gpu.parts import Row, Setting
from pipelines.doctor.gpu.speed.calibration import BANDWIDTH, BF16_RATE
from pipelines.doctor.gpu.speed.roofline import Chip, images_per_second
from pipelines.doctor.gpu.timing import seconds_of
from pipelines.doctor.gpu.workload import Pretraining, random_pixels

BATCHES = {"atto": 512, "tiny": 512, "base": 256, "large": 256, "huge": 128}
LEAST_BATCH = 8
GOALS = {"atto": 35_000, "base": 5_200, "large": 3_100, "huge": 1_260}
"""Goals for FCMAE on an H100, images/s: about three quarters of its roofline."""
ADVANTAGE = {"atto": "none", "base": "at least 2"}
"""Goals for the speed of FCMAE, which computes 19 of 49 patches, over a dense step."""
CLOCK = 1.755e9
"""The clock of an H100 under load, in Hz, for devices that do not report theirs."""

Step = Callable[[], object]
MakeStep = Callable[[int], Step]


@dataclass(frozen=True)
class Measured:
    """A step to measure: how to build it for a batch size, and what to compare it to.

    `macs` are the multiply-adds of the forward pass of an image; `memory` describes the same step
    for the memory formula.
    """

    name: str
    size: str
    batch: int
    macs: float
    dense: bool
    build: MakeStep
    memory: Forward | None = None


def speed(setting: Setting) -> Iterator[Row]:
    """Measure the steps, the most important ones first, since the time may not suffice for all."""
    side = 64 if setting.quick else 224
    sizes = setting.sizes
    rates: dict[str, float] = {}
    for size in sizes:
        for row in measured(fcmae(size, "gather", side, setting), setting):
            rates[size] = float(row.figures.get("images/s", 0.0))
            yield row
    compared = [size for size in sizes if size in ("base", "atto")]
    for size in compared:
        for who in ("ours",) if setting.quick else ("ours", "timm"):
            for row in measured(dense(size, who, side, setting), setting):
                yield row
                if who == "ours" and row.figures:
                    times = rates[size] / float(row.figures["images/s"])
                    yield Row(f"FCMAE {size} / dense", {"times": times, "goal": ADVANTAGE[size]})
    others: list[Backend] = ["masked-dense"]
    if find_spec("spconv") is not None and not setting.quick:
        others.append("spconv")
    for size in compared:
        for backend in others:
            yield from measured(fcmae(size, backend, side, setting), setting)


def fcmae(
    size: str, backend: Backend, side: int, setting: Setting, *, compiled: bool = False
) -> Measured:
    device = torch.device(setting.device)

    def build(batch: int) -> Step:
        torch.manual_seed(0)
        with device:  # Initialising Huge on the host takes long.
            task = Pretraining(FCMAE.from_size(size, image_size=side, backend=backend))
        task.to(torch.bfloat16)
        if compiled:
            task.model.encoder.compile()
        pixels = random_pixels(batch, side, device)

        def step() -> None:
            task.zero_grad()
            task(pixels).loss.backward()

        return step

    with torch.device("meta"):
        macs = fcmae_macs(size, FCMAE.from_size(size, image_size=side))
    name = f"FCMAE {size} {backend}{' compiled' if compiled else ''}"
    forward = replace(forward_of(size, side, setting), mask_ratio=0.6)
    if backend == "masked-dense":
        forward = replace(forward, backend="masked-dense")
    memory = None if compiled or backend == "spconv" else forward
    return Measured(name, size, batch_of(size, setting), macs, False, build, memory)


def dense(size: str, who: str, side: int, setting: Setting, *, compiled: bool = False) -> Measured:
    device = torch.device(setting.device)

    def build(batch: int) -> Step:
        torch.manual_seed(0)
        with device:
            model = classifier(size, who)
        model = model.to(torch.bfloat16).to(memory_format=torch.channels_last)
        forward: Callable[[torch.Tensor], torch.Tensor] = model
        if compiled and isinstance(model, ConvNeXtV2):
            model.compile()  # In place, as the recipe's field `compile` does.
        elif compiled:
            forward = torch.compile(model)
        images = torch.randn(batch, 3, side, side, device=device, dtype=torch.bfloat16)
        images = images.to(memory_format=torch.channels_last)
        labels = torch.arange(batch, device=device) % 1000

        def step() -> None:
            model.zero_grad()
            F.cross_entropy(forward(images).float(), labels).backward()

        return step

    macs = encoder_macs(size, side)
    name = f"dense {size} {who}{' compiled' if compiled else ''}"
    memory = forward_of(size, side, setting) if who == "ours" and not compiled else None
    return Measured(name, size, max(1, batch_of(size, setting) // 4), macs, True, build, memory)


def forward_of(size: str, side: int, setting: Setting) -> Forward:
    """The input of the memory formula for a dense step in bf16."""
    kernels: Kernels = "triton" if setting.on_gpu and not triton_missing() else "plain"
    return Forward(size=size, image_size=side, kernels=kernels)


def classifier(size: str, who: str) -> nn.Module:
    """The 1000-class model of `ours` or `timm`."""
    if who == "ours":
        return ConvNeXtV2.from_size(size)
    import timm

    model: nn.Module = timm.create_model(f"convnextv2_{size}")
    return model


def batch_of(size: str, setting: Setting) -> int:
    return 2 if setting.quick else BATCHES.get(size, 128)


def measured(what: Measured, setting: Setting) -> Iterator[Row]:
    """Measure a step with the largest batch that fits."""
    if what.name.split()[2] == "timm" and find_spec("timm") is None:
        return
    batch = what.batch
    while (seconds := seconds_of_step(what, batch, setting)) is None:
        if batch <= LEAST_BATCH:
            yield Row(what.name, {}, f"not even {batch} images fit{_what_would(what)}")
            return
        batch //= 2
    yield Row(what.name, figures_of(what, batch, seconds, setting))


def _what_would(what: Measured) -> str:
    """A sentence on the batch that would fit with activation checkpointing, by the formula."""
    if what.memory is None:
        return ""
    free, _ = torch.cuda.mem_get_info()
    again = replace(what.memory, checkpoint_stages=(0, 1, 2, 3))
    for batch in (what.batch >> halved for halved in range(what.batch.bit_length())):
        if bytes_of(again, batch) <= free:
            return f"; by the formula {batch} would with checkpoint_stages=(0, 1, 2, 3)"
    return "; nor would one with checkpoint_stages=(0, 1, 2, 3): take a smaller model"


def bytes_of(forward: Forward, batch: int) -> float:
    """Bytes of a step: activations, weights and gradients, without the optimizer."""
    states = 2 * forward.value_bytes * parameter_count(forward)
    return activation_bytes(forward, batch).total + states


def seconds_of_step(what: Measured, batch: int, setting: Setting) -> float | None:
    """Seconds of a step; None when the batch does not fit into the device's memory."""
    if setting.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rounds, calls, warm = (1, 1, 1) if setting.quick else (3, 5, 3)
    device = torch.device(setting.device)
    try:
        return seconds_of(what.build(batch), device, rounds=rounds, calls=calls, warm=warm)
    except torch.OutOfMemoryError:
        return None


def figures_of(
    what: Measured, batch: int, seconds: float, setting: Setting
) -> dict[str, float | str]:
    """The speed, as images/s and as shares of the data sheet's peak and of the roofline."""
    rate = batch / seconds
    figures: dict[str, float | str] = {"images/s": rate, "ms": 1e3 * seconds}
    figures["batch"] = str(batch) if batch == what.batch else f"{batch} ({what.batch} do not fit)"
    if what.memory is not None:
        figures["formula GiB"] = bytes_of(what.memory, batch) / GIB
    if not setting.on_gpu:
        return figures
    properties = torch.cuda.get_device_properties(0)
    peak = peak_of(properties.name)
    if peak is not None:
        figures["MFU %"] = 100 * 6 * what.macs * rate / peak
    if "H100" in properties.name and not what.dense and what.size in GOALS:
        figures["of goal %"] = 100 * rate / GOALS[what.size]
    figures["GiB"] = torch.cuda.max_memory_allocated() / GIB
    if BANDWIDTH in setting.rates and BF16_RATE in setting.rates:
        clock = 1e3 * getattr(properties, "clock_rate", CLOCK / 1e3)
        chip = Chip(
            1e12 * setting.rates[BANDWIDTH],
            1e12 * setting.rates[BF16_RATE],
            128 * properties.multi_processor_count * clock,
        )
        ceiling = images_per_second(what.size, chip, batch, dense=what.dense)
        figures["of roofline %"] = 100 * rate / ceiling
    return figures
