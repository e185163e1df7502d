"""`make bench-train`: overhead and scaling of the engine, cost of checkpoints, memory of models.

The images are in memory; data and start-up have benchmarks of their own. With `--device cuda` every
part has one worker on one GPU; `scaling`, which divides the cores of a machine, is for CPUs only.
"""

import argparse
import itertools
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from pipelines.bench.device import add_device_option, name_of
from pipelines.bench.results import add_output_options, origin, publish
from pipelines.bench.train.workers import run_group

SCALING = "scaling"
PARTS = ("overhead", SCALING, "checkpoint", "groups", "memory", "huge")
# The images of the paper.
BATCH = 32
PAPER: dict[str, object] = {"size": "atto", "image_size": 224, "batch": BATCH}
SMALL: dict[str, object] = {"image_size": 64, "batch": 8}
STAGES = (0, 1, 2, 3)
WORKERS = {"cpu": 2, "cuda": 1}

Row = dict[str, float | str]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.train", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--turns", type=int, default=8, help="steps or saves that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="groups started for every figure")
    add_device_option(parser)
    add_output_options(parser, "bench-train.json")
    options = parser.parse_args()
    device = options.device
    if options.parts is None:
        options.parts = [part for part in PARTS if device == "cpu" or part != SCALING]
    if device != "cpu" and SCALING in options.parts:
        parser.error(f"{SCALING} shares out a machine's cores; leave it out with --device {device}")
    name = name_of(device)
    measure = {
        "overhead": lambda: overhead(options.turns, options.rounds, device),
        "scaling": lambda: scaling(options.turns, options.rounds),
        "checkpoint": lambda: checkpoint(options.turns, device),
        "groups": lambda: groups(options.turns, device),
        "memory": lambda: memory(device),
        "huge": lambda: huge(device),
    }
    started = {**origin(), "device": name}
    measured = {part: measure[part]() for part in options.parts}

    def show() -> None:
        for part, rows in measured.items():
            Console().print(table(part, rows))

    publish({**started, "turns": options.turns, **measured}, options, show)


def overhead(turns: int, rounds: int, device: str) -> list[Row]:
    """Time of the engine over that of a bare loop, one worker with all cores."""
    rows: list[Row] = []
    for stage in (0, 1):
        settings = {"stage": stage, "turns": turns, **PAPER}
        found = [
            row
            for _ in range(rounds)
            for row in run_group(
                "overhead", 1, settings, threads=os.cpu_count() or 1, device=device
            )
        ]
        row = {key: statistics.median(each[key] for each in found) for key in found[0]}
        rows.append({"ZeRO": stage, **row})
    return rows


def scaling(turns: int, rounds: int) -> list[Row]:
    """images/s of two workers with one thread each, over twice that of one.

    It is measured with and without accumulation: a global batch of 4,096 on two workers has 32
    micro batches. Two workers in separate groups show the cost of sharing the machine without
    communication.
    """
    rows: list[Row] = []
    for stage, accumulation in itertools.product((0, 1), (1, 4)):
        rates: dict[str, list[float]] = {"alone": [], "apart": [], "together": []}
        settings = {"stage": stage, "accumulation": accumulation, "turns": turns, **PAPER}
        for _ in range(rounds):
            rates["alone"].append(1 / step_seconds(1, settings))
            with ThreadPoolExecutor() as pool:
                rates["apart"].append(
                    sum(1 / s for s in pool.map(step_seconds, (1, 1), [settings] * 2))
                )
            rates["together"].append(2 / step_seconds(2, settings))
        images = BATCH * accumulation
        pairs = list(zip(rates["alone"], rates["apart"], rates["together"], strict=True))
        rows.append(
            {
                "ZeRO": stage,
                "accumulation": accumulation,
                **{name: images * statistics.median(each) for name, each in rates.items()},
                "of_alone": statistics.median(both / (2 * one) for one, _, both in pairs),
                "of_apart": statistics.median(both / apart for _, apart, both in pairs),
            }
        )
    return rows


def step_seconds(workers: int, settings: Mapping[str, object]) -> float:
    """Seconds of a step in a group of this many workers."""
    (row,) = run_group("steps", workers, settings)
    return row["seconds"]


def checkpoint(turns: int, device: str) -> list[Row]:
    """How long a save keeps the loop waiting."""
    return [
        {"size": size, **row}
        for size in ("atto", "tiny", "base")
        for row in run_group("saving", 1, {"size": size, "turns": turns, **SMALL}, device=device)
    ]


def groups(turns: int, device: str) -> list[Row]:
    """Time of a step without layer decay, with it, and with a parameter group for every layer."""
    settings = {"size": "tiny", "turns": turns, **SMALL}
    return [{**row} for row in run_group("grouping", WORKERS[device], settings, device=device)]


def memory(device: str) -> list[Row]:
    """Memory in every ZeRO stage and precision, for Tiny with EMA; two workers on a CPU."""
    return [
        model_states("tiny", stage, precision, batch=4, ema=True, device=device)
        for precision in ("fp32", "bf16")
        for stage in STAGES
        # Stage 0 in bf16 is refused where GPUs are configured.
        if (device, stage, precision) != ("cuda", 0, "bf16")
    ]


def huge(device: str) -> list[Row]:
    """Time of a step of FCMAE Huge."""
    return [
        model_states("huge", stage, "bf16", batch=1, ema=False, device=device)
        for stage in (1, 2, 3)
    ]


def model_states(
    size: str, stage: int, precision: str, *, batch: int, ema: bool, device: str
) -> Row:
    """MB of a worker above its start, and by formula; freed memory is returned to the system."""
    described: Row = {"size": size, "ZeRO": stage, "precision": precision}
    settings = {
        "size": size,
        "image_size": 64,
        "stage": stage,
        "precision": precision,
        "batch": batch,
        "ema": ema,
    }
    (row,) = run_group("memory", WORKERS[device], settings, keep_pages=False, device=device)
    return {**described, **row}


def table(part: str, rows: Sequence[Row]) -> Table:
    """A table of the rows."""
    shown = Table(*rows[0], title=part)
    for row in rows:
        shown.add_row(*(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    return shown


if __name__ == "__main__":
    main()
