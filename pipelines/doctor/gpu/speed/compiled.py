"""Part `compiled`: whether `torch.compile` makes the dense model faster, ours and timm's."""

from collections.abc import Iterator

from pipelines.doctor.gpu.parts import Row, Setting, Skipped
from pipelines.doctor.gpu.speed.steps import Measured, dense, fcmae, measured

SIDE = 224
SIZES = ("atto", "base")


def compiled_speed(setting: Setting) -> Iterator[Row]:
    """Measure our model and timm's, eager and compiled, one after the other; then FCMAE.

    Compiling a model takes half a minute to two minutes. The two measurements of our own model
    come first, because they already tell which setting is faster.

    Raises:
        Skipped: On a CPU, whose result would not hold for a GPU.
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
    """Measure, and store the images/s in `rates` under `name`."""
    for row in measured(what, setting):
        if "images/s" in row.figures:
            rates[name] = float(row.figures["images/s"])
        yield row


def setting_of(size: str, rates: dict[str, float]) -> Row:
    """The faster value of the recipe's `compile`; a problem if timm's model is faster still."""
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
