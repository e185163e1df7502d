"""Part `compiled`: whether `torch.compile` pays for the dense model, and how timm's does by it."""

from collections.abc import Iterator

from pipelines.doctor.gpu.parts import Row, Setting, Skipped
from pipelines.doctor.gpu.speed.steps import Measured, dense, fcmae, measured

SIDE = 224
SIZES = ("atto", "base")


def compiled_speed(setting: Setting) -> Iterator[Row]:
    """Ours and timm's, eager and compiled, one after the other; then FCMAE.

    Compiling takes from half a minute to two for each, so what the question needs comes first, and
    there is an answer after our own two already.

    Raises:
        Skipped: On a CPU, where it says nothing about a GPU.
    """
    if not setting.on_gpu:
        raise Skipped("compiled for a CPU the models say nothing about a GPU")
    sizes = [size for size in SIZES if size in setting.sizes]
    for size in sizes:
        rates: dict[str, float] = {}
        for who in ("ours", "timm"):
            for compiled in (False, True):
                step = dense(size, who, SIDE, setting, compiled=compiled)
                yield from noted(step, f"{who} {compiled}", rates, setting)
            if {"ours False", "ours True"} <= rates.keys():
                yield setting_of(size, rates)
    for size in sizes:
        yield from measured(fcmae(size, "gather", SIDE, setting, compiled=True), setting)


def noted(what: Measured, name: str, rates: dict[str, float], setting: Setting) -> Iterator[Row]:
    """Measure, and keep the images/s under `name`."""
    for row in measured(what, setting):
        if "images/s" in row.figures:
            rates[name] = float(row.figures["images/s"])
        yield row


def setting_of(size: str, rates: dict[str, float]) -> Row:
    """Which value of the recipe's `compile` is the faster one, and whether timm's is faster yet."""
    eager, compiled = rates["ours False"], rates["ours True"]
    faster = "true" if compiled > eager else "false"
    figures: dict[str, float | str] = {
        "use": f"finetune.compile={faster}",
        "compiled / eager": compiled / eager,
    }
    problem = ""
    if theirs := rates.get("timm True"):
        figures["of timm compiled"] = ratio = max(eager, compiled) / theirs
        if ratio < 1:
            problem = f"timm's compiled model is {1 / ratio:.2f} times as fast"
    return Row(f"dense {size} setting", figures, problem)
