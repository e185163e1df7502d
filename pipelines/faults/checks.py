"""Whether a disturbed run has become what the undisturbed one is, and has left nothing behind."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from cluster.checkpoint.store import CheckpointError, verify
from cluster.resilience.incidents import Incident
from pipelines.faults.disturb import Disturbed
from pipelines.faults.history import used_once
from pipelines.faults.outcome import Outcome
from pipelines.graph.complete import COMPLETE, read_complete, verified_outputs
from pipelines.runtime.events import EVENTS_FILE, Start, read_events
from pipelines.training.anomalies import spikes
from pipelines.training.anomalies.spikes import Windows

MOST = 5


@dataclass(frozen=True)
class Check:
    """One promise; `passed` is None where it cannot be looked at from here."""

    name: str
    passed: bool | None
    words: str


def all_checks(
    outcomes: Sequence[Outcome],
    unexplained: Sequence[Incident],
    disturbed: Disturbed,
    run_dir: Path,
    undisturbed: Path,
    tolerance: float,
) -> list[Check]:
    """Every check, in the order of display."""
    return [
        _fired(outcomes),
        _finished(disturbed),
        _incidents(outcomes, unexplained),
        _weights(run_dir, undisturbed, tolerance),
        _samples(run_dir),
        _processes(disturbed),
        _files(run_dir),
    ]


def _of(name: str, problems: Sequence[str], words: str) -> Check:
    if not problems:
        return Check(name, True, words)
    more = f"; and {len(problems) - MOST} more" if len(problems) > MOST else ""
    return Check(name, False, "; ".join(problems[:MOST]) + more)


def _fired(outcomes: Sequence[Outcome]) -> Check:
    silent = [
        f"fault {each.fault.number} ({each.fault.what}, {each.fault.when}, {each.fault.place}) "
        "has not fired"
        for each in outcomes
        if each.fired is None
    ]
    return _of("faults", silent, f"all {len(outcomes)} have fired")


def _finished(disturbed: Disturbed) -> Check:
    if disturbed.code is None:
        return Check("run", False, "it took too long and was ended (minutes in the plan)")
    return Check("run", disturbed.code == 0, f"it ended with exit code {disturbed.code}")


def _incidents(outcomes: Sequence[Outcome], unexplained: Sequence[Incident]) -> Check:
    problems = [
        f"fault {each.fault.number} ({each.fault.what}): {each.problem}"
        for each in outcomes
        if each.problem and each.fired is not None
    ]
    problems += [
        f"no fault explains the incident of worker {each.rank} at step {each.step}: {each.error}"
        for each in unexplained
    ]
    count = sum(each.incident is not None for each in outcomes)
    return _of("incidents", problems, f"{count}, one for each fault that must have one")


def _weights(run_dir: Path, undisturbed: Path, tolerance: float) -> Check:
    files = sorted(_weight_files(run_dir))
    if not files or files != sorted(_weight_files(undisturbed)):
        words = "the two runs have not written the same files: their settings or images differ"
        return Check("weights", False, words)
    if _left_out(run_dir) != _left_out(undisturbed):
        words = "the two runs have left out different steps around spikes of the loss"
        return Check("weights", False, words)
    sizes = {size for folder in (run_dir, undisturbed) for size in _numbers_of_workers(folder)}
    if len(sizes) == 1:
        different = [
            f"{name} differs by up to {_distance(run_dir / name, undisturbed / name):.1e}"
            for name in files
            if (run_dir / name).read_bytes() != (undisturbed / name).read_bytes()
        ]
        return _of("weights", different, "equal the undisturbed run's, bit by bit")
    distances = {name: _distance(run_dir / name, undisturbed / name) for name in files}
    far = [f"{name} differs by up to {d:.1e}" for name, d in distances.items() if d > tolerance]
    listed = ", ".join(map(str, sorted(sizes)))
    return _of(
        "weights",
        far,
        f"equal the undisturbed run's to {max(distances.values()):.1e} of the largest of each "
        f"tensor; the groups had {listed} workers, and {tolerance:g} is allowed",
    )


def _weight_files(run_dir: Path) -> Iterator[str]:
    """Outputs with weights, relative to the run's folder."""
    for path in run_dir.glob(f"stages/*/*/{COMPLETE}"):
        for name in (read_complete(path.parent) or {"outputs": {}})["outputs"]:
            if name.endswith(".safetensors"):
                yield str((path.parent / name).relative_to(run_dir))


def _left_out(run_dir: Path) -> dict[Path, set[tuple[int, int]]]:
    """The first steps and the ends of what was left out around spikes, by stage."""
    return {
        path.relative_to(run_dir): {
            (each.first, each.end) for each in Windows.read(path.parent).each
        }
        for path in run_dir.glob(f"stages/*/*/{spikes.FILE}")
    }


def _numbers_of_workers(run_dir: Path) -> set[int]:
    return {
        event.workers
        for stage in run_dir.glob("stages/*/*")
        for event in read_events(stage)
        if isinstance(event, Start)
    }


def _distance(one: Path, other: Path) -> float:
    """The largest difference of a weight, relative to the largest weight of its tensor."""
    most = 0.0
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        names = a.keys()
        if set(names) != set(b.keys()):
            return float("inf")
        for name in names:
            ours, theirs = (file.get_tensor(name).double() for file in (a, b))
            scale = theirs.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
            most = max(most, ((ours - theirs).abs().max() / scale).item())
    return most


def _samples(run_dir: Path) -> Check:
    problems: list[str] = []
    total = 0
    for events in run_dir.glob(f"stages/*/*/{EVENTS_FILE}"):
        if any(isinstance(event, Start) for event in read_events(events.parent)):
            count, found = used_once(events.parent)
            total, problems = total + count, problems + found
    words = f"every sample of every epoch was used exactly once ({total:,} in all)"
    if windows := sorted(window for each in _left_out(run_dir).values() for window in each):
        listed = ", ".join(f"{first + 1} to {end}" for first, end in windows)
        words += f", but for steps {listed}, left out around spikes of the loss"
    return _of("samples", problems, words)


def _processes(disturbed: Disturbed) -> Check:
    if disturbed.left is None:
        return Check("processes", None, "the nodes are elsewhere, and are not looked at from here")
    left = [f"still there: {line[:100]}" for line in disturbed.left]
    return _of("processes", left, "no worker and no agent is left")


def _files(run_dir: Path) -> Check:
    problems = [f"left over: {path}" for path in run_dir.rglob(".*partial*")]
    checkpoints = sorted(run_dir.glob("stages/*/*/checkpoints/step-*"))
    for path in checkpoints:
        try:
            verify(path)
        except CheckpointError as error:
            problems.append(f"{path}: {error}")
    for complete in run_dir.glob(f"stages/*/*/{COMPLETE}"):
        for name, problem, _ in verified_outputs(complete.parent):
            problems += [f"{complete.parent / name}: {problem}"] if problem else []
    for path in [*run_dir.glob("*.jsonl"), *run_dir.glob("stages/*/*/*.jsonl")]:
        problems += [f"{path} has a line that is torn"] if _is_torn(path) else []
    words = f"{len(checkpoints)} checkpoints and all outputs are whole, nothing is left over"
    return _of("files", problems, words)


def _is_torn(path: Path) -> bool:
    """Whether a file of JSON lines has one that cannot be read."""
    text = path.read_text()
    try:
        for line in text.splitlines():
            json.loads(line)
    except ValueError:
        return True
    return bool(text) and not text.endswith("\n")
