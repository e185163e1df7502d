"""The event log: what a stage measured, as JSON lines in its folder, written by rank 0 only.

It is the truth behind the progress bar, MLflow and the report. Lines are appended and never
changed: after a restart a "start" line says from which step training went on, and readers drop
what came after that step before.

    {"kind": "start", "step": 400, "workers": 2, "time": ...}
    {"kind": "point", "step": 410, "loss": 0.47, ...}
    {"kind": "validation", "step": 500, "val_top1": 0.71, "val_top1_ema": 0.72, ...}
    {"kind": "skipped", "step": 410, "skipped_steps": 1}
    {"kind": "checkpoint", "step": 500, "bytes": ..., "written_seconds": 0.2, "seconds": {...}}
    {"kind": "rejected", "step": 0, "path": ..., "reason": ...}
    {"kind": "end", "step": 1248, "seconds": {...}}
"""

import itertools
import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

SPOOL = "metrics.jsonl"
Line = dict[str, Any]

STARTING, LOST, HAND_OVER = "starting", "lost", "hand-over"
"""Phases of a stage in which no worker keeps time."""


class EventLog:
    """Appends lines; a worker that is not rank 0 writes nothing."""

    def __init__(self, directory: Path, *, active: bool) -> None:
        path = directory / SPOOL
        if active and path.exists():
            # A full disk or a lost node may have left the last line without its end.
            whole, newline, _ = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole + newline))
        self._file = path.open("a") if active else None

    def write(self, kind: str, step: int, **values: Any) -> None:
        if self._file is not None:
            line = {"kind": kind, "step": step, "time": time.time(), **values}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


class EventReader:
    """Reads what was appended since the last look."""

    def __init__(self, directory: Path, *, from_end: bool = False) -> None:
        self._path = directory / SPOOL
        self._offset = 0
        if from_end:
            self.new_lines()

    def new_lines(self) -> list[Line]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, separator, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(separator)
        return [json.loads(line) for line in whole.splitlines() if line]


def read_events(directory: Path) -> list[Line]:
    """Every line of a stage so far."""
    return EventReader(directory).new_lines()


def curve(lines: list[Line], kind: str = "point") -> list[Line]:
    """The points (lines of `kind`) of the run as it counts: without what a restart took back."""
    points: list[Line] = []
    for line in lines:
        if line["kind"] == "start":
            points = [point for point in points if point["step"] <= line["step"]]
        elif line["kind"] == kind:
            points.append(line)
    return points


def restarts(lines: list[Line]) -> list[Line]:
    """The "start" lines behind the first: each is a group that took over."""
    return [line for line in lines if line["kind"] == "start"][1:]


def seconds_by_phase(lines: list[Line]) -> dict[str, float]:
    """Time of rank 0 by phase, over all groups; of a killed group, up to its last checkpoint."""
    total: dict[str, float] = defaultdict(float)
    for group in _groups(lines):
        timed = [line["seconds"] for line in group if "seconds" in line]
        _add(total, timed[-1] if timed else {})
    return dict(total)


def wall_by_phase(lines: list[Line], began: float, finished: float) -> dict[str, float]:
    """Where a stage's wall time went; the values add up to `finished - began` (epoch seconds).

    Besides the workers' own phases: `STARTING` the first group; `LOST`, from a killed group's last
    checkpoint until the next group is there; `HAND_OVER`, from the last group's end.
    """
    total: dict[str, float] = defaultdict(float)
    known, gap = began, STARTING
    for group in _groups(lines):
        timed = [line for line in group if "seconds" in line]
        if timed:
            last = timed[-1]
            total[gap] += max(0.0, last["time"] - math.fsum(last["seconds"].values()) - known)
            _add(total, last["seconds"])
            known = last["time"]
        gap = LOST
    total[HAND_OVER] = max(0.0, finished - known)
    return dict(total)


def split(lines: list[Line], began: float) -> tuple[list[Line], list[Line]]:
    """The lines of the groups that started before `began` (epoch seconds), and the others."""
    for index, line in enumerate(lines):
        if line["kind"] == "start" and line["time"] >= began:
            return lines[:index], lines[index:]
    return lines, []


def _groups(lines: list[Line]) -> list[list[Line]]:
    """The lines of each worker group, from its "start" on."""
    starts = [index for index, line in enumerate(lines) if line["kind"] == "start"]
    return [lines[start:end] for start, end in itertools.pairwise([*starts, len(lines)])]


def _add(total: dict[str, float], part: dict[str, float]) -> None:
    for name, seconds in part.items():
        total[name] += seconds
