"""Command `incidents`: the faults of a run, and what they cost."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands import Commands, aligned, check_run_folder, command

if TYPE_CHECKING:
    from cluster.resilience.incidents import Incident


def add_incidents_command(commands: Commands) -> None:
    """Add `incidents` to the subparsers `commands`."""
    added = command(
        commands,
        "incidents",
        "list the faults of a run, and how long each recovery took, by phase",
        "convnextv2 incidents runs/demo",
        _act,
    )
    added.add_argument("run", type=Path, help="a run folder")


def _act(options: argparse.Namespace) -> int:
    check_run_folder(options.run)
    from cluster.resilience.incidents import read

    found = read(options.run)
    if options.json:
        listed = [{**asdict(each), "downtime": each.downtime} for each in found]
        print(json.dumps(listed, indent=1))
    elif found:
        print(_table(found))
    else:
        print(f"{options.run} has had no incident")
    return 0


def _table(found: Sequence["Incident"]) -> str:
    rows = [("WHEN", "STAGE", "CAUSE", "RANK", "HOST", "PHASE", "STEP", "LOST STEPS", "DOWNTIME")]
    for each in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.time))
        step = "-" if each.step < 0 else str(each.step)
        lost = str(each.lost_steps) if each.recovered else "?"
        downtime = f"{each.downtime:.1f} s" if each.recovered else "not recovered"
        place = (str(each.rank), each.host or "-", each.phase, step)
        rows.append((when, each.stage, each.cause, *place, lost, downtime))
    head, *lines = aligned(rows)
    text = [head]
    for each, line in zip(found, lines, strict=True):
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in each.seconds.items())
        text += [line, f"  {each.error}", *([f"  seconds: {phases}"] if phases else [])]
    return "\n".join(text)
