"""`make gpu-check`: run the parts, write the JSON after each, end with a table and a verdict."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pipelines.doctor.gpu.budget import share
from pipelines.doctor.gpu.correctness.backends import backends
from pipelines.doctor.gpu.correctness.graph import graph
from pipelines.doctor.gpu.correctness.kernels import kernels
from pipelines.doctor.gpu.correctness.loader import loader
from pipelines.doctor.gpu.correctness.syncs import syncs
from pipelines.doctor.gpu.correctness.training import training
from pipelines.doctor.gpu.correctness.zero import zero
from pipelines.doctor.gpu.machine import machine
from pipelines.doctor.gpu.parts import Outcome, Part, Row, Setting, prepare, run_part
from pipelines.doctor.gpu.speed.calibration import calibration
from pipelines.doctor.gpu.speed.compilation import compilation
from pipelines.doctor.gpu.speed.compiled import compiled_speed
from pipelines.doctor.gpu.speed.kernel_speed import kernel_speed
from pipelines.doctor.gpu.speed.profile import profile
from pipelines.doctor.gpu.speed.steps import BATCHES, speed
from pipelines.doctor.gpu.table import render, row_line

SECONDS = 300.0
# The most important first. The weights add up to SECONDS: each is how long its part can take if all
# parts before it use up their time. What they do not use is added to it in proportion (`share`).
PARTS = (
    Part("machine", 20, machine),
    Part("calibration", 7, calibration),
    Part("compilation", 38, compilation),
    Part("kernels", 90, kernels),
    Part("loader", 5, loader),
    Part("syncs", 13, syncs),
    Part("compiled", 32, compiled_speed),
    Part("speed", 35, speed),
    Part("kernel-speed", 8, kernel_speed),
    Part("profile", 6, profile),
    Part("backends", 8, backends),
    Part("zero", 14, zero),
    Part("graph", 14, graph),
    Part("training", 10, training),
)
QUICK_SIZES = ("atto",)
DRY_RUN_PATIENCE = 5
LEAST_SECONDS = 2.0
"""A part is not begun with a smaller share of the time than this."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status, 0 when no part failed."""
    options = _parse(arguments)
    sizes = options.sizes or (QUICK_SIZES if options.quick else Setting.sizes)
    setting = Setting(device=options.device, quick=options.quick, sizes=tuple(sizes))
    if not setting.on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    chosen = [part for part in PARTS if part.name in options.parts]
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(outcomes: dict[str, Outcome]) -> None:
        write(options.out, setting, outcomes)

    # A dry run only proves that every part runs, so a slow CPU gets more time.
    patience = 1 if setting.on_gpu else DRY_RUN_PATIENCE
    outcomes = run_all(chosen, setting, patience * options.seconds, keep)
    broken = [o.reason for o in outcomes.values() if o.verdict == "unusable"]
    if broken:
        print(broken[0], file=sys.stderr)
        return 1
    print("\n" + render(outcomes))
    print(f"written to {options.out}")
    return int(any(outcome.verdict == "fail" for outcome in outcomes.values()))


def run_all(
    parts: Sequence[Part],
    setting: Setting,
    seconds: float,
    keep: Callable[[dict[str, Outcome]], None],
) -> dict[str, Outcome]:
    """Run parts one after another, `seconds` in all; `keep` gets all outcomes after each row."""
    deadline = time.monotonic() + seconds
    prepare()
    outcomes: dict[str, Outcome] = {}
    for number, part in enumerate(parts):
        limit = share(deadline - time.monotonic(), parts[number:])
        if limit < LEAST_SECONDS:
            reason = f"its share of the {seconds:.0f} s is under {LEAST_SECONDS:.0f} s"
            outcomes[part.name] = Outcome("cut", 0.0, [], reason)
            continue
        print(f"== {part.name} ({limit:.0f} s at most)", flush=True)
        told: list[Row] = []

        def tell(row: Row, name: str = part.name, told: list[Row] = told) -> None:
            told.append(row)
            print(row_line(row), flush=True)
            keep({**outcomes, name: Outcome("cut", 0.0, told, "it was still running")})

        outcome = run_part(part, setting, limit, tell)
        outcomes[part.name] = outcome
        keep(outcomes)
        if outcome.verdict == "unusable":
            break
        print(f"   {outcome.verdict} {outcome.seconds:.1f} s {outcome.reason}", flush=True)
        if part.name == "calibration":
            setting = replace(setting, rates=_rates(outcome))
    return outcomes


def write(path: Path, setting: Setting, outcomes: dict[str, Outcome]) -> None:
    """Write all outcomes so far, so that they are kept if the machine is taken away."""
    document = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "device": setting.device,
        "quick": setting.quick,
        "parts": {name: asdict(outcome) for name, outcome in outcomes.items()},
    }
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


def _rates(calibrated: Outcome) -> dict[str, float]:
    return {
        f"{row.case} {name}": value
        for row in calibrated.rows
        for name, value in row.figures.items()
        if not isinstance(value, str)
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.doctor.gpu", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument(
        "--sizes", nargs="+", choices=tuple(BATCHES), metavar="SIZE", help="models to measure"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small shapes, few steps: a dry run")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check.json"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
