"""Command `goodput`: the productive share of a run's training time, and where the rest went."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands import Commands, aligned, check_run_folder, command

if TYPE_CHECKING:
    from pipelines.runtime.goodput import Account


def add_goodput_command(commands: Commands) -> None:
    """Add `goodput` to the subparsers `commands`."""
    added = command(
        commands,
        "goodput",
        "show the share of a run's training time that was productive, and where the rest went",
        "convnextv2 goodput runs/demo",
        _act,
    )
    added.add_argument("run", type=Path, help="a run folder")


def _act(options: argparse.Namespace) -> int:
    check_run_folder(options.run)
    from pipelines.runtime.goodput import accounts_of, total

    accounts = accounts_of(options.run)
    if options.json:
        stages = [{**asdict(each), "goodput": each.goodput} for each in accounts]
        whole = total(accounts)
        run = {"wall": whole.wall, "goodput": whole.goodput, "seconds": whole.seconds}
        print(json.dumps({"run": run, "stages": stages}, indent=1))
    elif accounts:
        print(_parts(accounts), _groups(accounts), sep="\n\n")
    else:
        print(f"nothing was trained in {options.run}")
    return 0


def _parts(accounts: Sequence["Account"]) -> str:
    """Seconds and share of every part, in a column for each stage and one for all together."""
    from pipelines.runtime.goodput import total
    from pipelines.runtime.group_time import PARTS

    columns = [*accounts, total(accounts)] if len(accounts) > 1 else [*accounts]
    rows = [("", *(each.stage for each in columns))]
    rows.append(("goodput", *(f"{each.goodput:.1%}" for each in columns)))
    for part, words in PARTS.items():
        if any(part in each.seconds for each in columns):
            rows.append((words, *(_cell(each, part) for each in columns)))
    rows.append(("wall time", *(f"{each.wall:,.1f} s" for each in columns)))
    return "\n".join(aligned(rows))


def _cell(account: "Account", part: str) -> str:
    seconds = account.seconds.get(part, 0.0)
    share = seconds / account.wall if account.wall else 0.0
    return f"{seconds:,.1f} s {share:6.1%}"


def _groups(accounts: Sequence["Account"]) -> str:
    """A line for every worker group."""
    rows = [("STAGE", "GROUP", "BEGAN", "WORKERS", "STEPS", "LOST", "WALL", "GOODPUT", "ENDED BY")]
    for account in accounts:
        for number, group in enumerate(account.groups, 1):
            wall = group.ended - group.began
            productive = group.seconds.get("step", 0.0)
            rows.append(
                (
                    account.stage,
                    str(number),
                    time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(group.began)),
                    str(group.workers),
                    f"{group.first_step}-{group.last_step}",
                    str(group.lost_steps),
                    f"{wall:,.1f} s",
                    f"{productive / wall:.1%}" if wall else "-",
                    group.cause or "-",
                )
            )
    return "\n".join(aligned(rows))
