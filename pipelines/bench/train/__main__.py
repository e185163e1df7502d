"""`make bench-train`: what the engine costs, how it scales, what a checkpoint and a model take.

Everything on the CPU and on images in memory: data and start-up have benchmarks of their own.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.bench.train.workers import run_group
from pipelines.runtime.provenance import git_commit, versions

PARTS = ("overhead", "scaling", "checkpoint", "groups", "memory", "huge")
# The images of the paper.
PAPER: dict[str, Any] = {"size": "atto", "image_size": 224, "batch": 32}
STAGES = (0, 1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.train", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--turns", type=int, default=8, help="steps or saves that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="groups started for every figure")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-train.json"))
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args()
    measure = {
        "overhead": lambda: overhead(options.turns, options.rounds),
        "scaling": lambda: scaling(options.turns, options.rounds),
        "checkpoint": lambda: checkpoint(options.turns),
        "groups": lambda: run_group("grouping", 2, size="tiny", image_size=64, batch=8,
                                    turns=options.turns),
        "memory": memory,
        "huge": huge,
    }  # fmt: skip
    results: dict[str, Any] = {
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.machine()},
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": git_commit(),
        "versions": versions(),
        "turns": options.turns,
        **{part: measure[part]() for part in options.parts},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        for part in options.parts:
            Console().print(table(part, results[part]))
        Console().print(f"written to {options.output}")


def overhead(turns: int, rounds: int) -> list[dict[str, Any]]:
    """Engine over bare loop, one worker with all cores."""
    rows = []
    for stage in (0, 1):
        found = [
            run_group("overhead", 1, os.cpu_count() or 1, stage=stage, turns=turns, **PAPER)
            for _ in range(rounds)
        ]
        row = {key: statistics.median(each[key] for each in found) for key in found[0]}
        rows.append({"ZeRO": stage, **row})
    return rows


def scaling(turns: int, rounds: int) -> list[dict[str, Any]]:
    """images/s of two workers with one thread each, over twice that of one.

    With and without accumulation: a global batch of 4,096 on two workers is 32 micro batches. Two
    workers of groups of their own show what sharing the machine costs without a word between them.
    """
    rows = []
    for stage, accumulation in itertools.product((0, 1), (1, 4)):
        rates: dict[str, list[float]] = {"alone": [], "apart": [], "together": []}
        settings = {"stage": stage, "accumulation": accumulation, "turns": turns, **PAPER}
        for _ in range(rounds):
            rates["alone"].append(1 / run_group("steps", 1, **settings)["seconds"])
            with ThreadPoolExecutor() as pool:
                both = [pool.submit(run_group, "steps", 1, **settings) for _ in range(2)]
            rates["apart"].append(sum(1 / each.result()["seconds"] for each in both))
            rates["together"].append(2 / run_group("steps", 2, **settings)["seconds"])
        images = PAPER["batch"] * accumulation
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


def checkpoint(turns: int) -> list[dict[str, Any]]:
    """How long a save keeps the loop waiting."""
    return [
        {"size": size, **run_group("saving", 1, size=size, image_size=64, batch=8, turns=turns)}
        for size in ("atto", "tiny", "base")
    ]


def memory() -> list[dict[str, Any]]:
    """Every stage in both precisions, Tiny with an average on two workers."""
    return [
        model_states("tiny", stage, precision, batch=4, ema=True)
        for precision in ("fp32", "bf16")
        for stage in STAGES
    ]


def huge() -> list[dict[str, Any]]:
    """A step of FCMAE Huge on two workers."""
    return [model_states("huge", stage, "bf16", batch=1, ema=False) for stage in (1, 2, 3)]


def model_states(size: str, stage: int, precision: str, *, batch: int, ema: bool) -> dict[str, Any]:
    """MB of a worker above its start, beside the formula; what is freed goes back to the system."""
    described = {"size": size, "ZeRO": stage, "precision": precision}
    settings: dict[str, Any] = {
        "size": size,
        "stage": stage,
        "precision": precision,
        "batch": batch,
        "ema": ema,
    }
    return described | run_group("memory", 2, keep_pages=False, image_size=64, **settings)


def table(part: str, rows: list[dict[str, Any]]) -> Table:
    """The rows as they are."""
    shown = Table(*rows[0], title=part)
    for row in rows:
        shown.add_row(*(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    return shown


if __name__ == "__main__":
    main()
