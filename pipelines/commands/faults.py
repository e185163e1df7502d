"""Commands `faults run` and `faults kinds`: inject the faults of a plan, and check the result."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands import Commands, aligned, command, command_group, say

if TYPE_CHECKING:
    from pipelines.faults.outcome import Outcome
    from pipelines.faults.trial import Trial

FOLDER = Path("runs/faults")


def add_faults_commands(commands: Commands) -> None:
    """Add `faults` and its verbs."""
    verbs = command_group(
        commands,
        "faults",
        "run a pipeline with injected faults, and check its result against a run without them",
        "convnextv2 faults run --plan quick",
    )
    run = command(
        verbs,
        "run",
        "run the faults of a plan; exit code 1 if a fault did not fire or a check fails",
        "convnextv2 faults run --plan quick",
        _act_run,
    )
    run.add_argument(
        "--plan",
        type=Path,
        required=True,
        metavar="FILE",
        help="a YAML file (docs/recovery.md), or the name of one that is shipped: "
        "quick, elastic, links, soak, own-cluster",
    )
    run.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="new folder for the runs, on storage that all nodes share (default: "
        f"{FOLDER}/PLAN-DATE)",
    )
    run.add_argument(
        "--baseline",
        type=Path,
        metavar="RUN",
        help="an undisturbed run of the same settings; by default it is made first",
    )
    command(
        verbs,
        "kinds",
        "list the kinds of faults that a plan may have",
        "convnextv2 faults kinds",
        _act_kinds,
    )


def _act_run(options: argparse.Namespace) -> int:
    from pipelines.commands import check_run_folder
    from pipelines.faults.reading import plan_file, read_plan

    path = plan_file(options.plan)
    plan, config = read_plan(path)
    folder: Path = options.run_dir or FOLDER / f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--run-dir {folder} is not empty; a trial needs a new folder")
    if options.baseline is not None:
        check_run_folder(options.baseline)
    say(f"{path} in {folder}")
    from pipelines.faults.trial import try_out

    trial = try_out(plan, config, folder.resolve(), options.baseline, say)
    if options.json:
        print(json.dumps(trial.as_json(), indent=1))
    else:
        print(_in_words(trial))
    return 0 if trial.passed else 1


def _act_kinds(options: argparse.Namespace) -> int:
    from pipelines.faults.kinds import KINDS

    if options.json:
        print(json.dumps({name: asdict(kind) for name, kind in KINDS.items()}, indent=1))
        return 0
    rows = [("KIND", "NODES", "INCIDENT", "WHAT HAPPENS")]
    for name, kind in KINDS.items():
        rows.append((name, kind.needs, kind.cause or "-", kind.about))
    print("\n".join(aligned(rows)))
    return 0


def _in_words(trial: "Trial") -> str:
    account = trial.account
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in account.seconds.items())
    marks = {True: "ok", False: "FAILED", None: "-"}
    checks = aligned([(marks[check.passed], check.name, check.words) for check in trial.checks])
    return "\n".join(
        [
            *_faults(trial.outcomes),
            "",
            *checks,
            "",
            f"goodput {account.goodput:.1%} of {account.wall:,.1f} s",
            f"seconds: {parts}",
            f"in {trial.folder}",
        ]
    )


def _faults(outcomes: Sequence["Outcome"]) -> list[str]:
    head = (
        "FAULT",
        "WHAT",
        "WHERE",
        "FIRED",
        "STEP",
        "CAUSE",
        "DETECTION",
        "RECOVERY",
        "LOST STEPS",
    )
    rows = [head]
    for each in outcomes:
        fault, fired, incident = each.fault, each.fired, each.incident
        when = "never" if fired is None else time.strftime("%H:%M:%S", time.localtime(fired.time))
        step = str(fault.when) if fired is None else str(fired.step)
        came = ("-", "-", "-", "-")
        if incident is not None:
            came = (
                incident.cause,
                f"{incident.seconds.get('detection', 0.0):.1f} s",
                f"{incident.downtime:.1f} s" if incident.recovered else "not recovered",
                str(incident.lost_steps),
            )
        rows.append((str(fault.number), fault.what, fault.place, when, step, *came))
    first, *lines = aligned(rows)
    text = [first]
    for each, line in zip(outcomes, lines, strict=True):
        text += [line, f"  {each.problem or each.followed}"]
        if each.incident is not None:
            seconds = each.incident.seconds.items()
            text.append("  seconds: " + ", ".join(f"{name} {s:.1f}" for name, s in seconds))
    return text
