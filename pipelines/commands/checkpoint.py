"""Commands on the checkpoints of a run: `checkpoint list`, `verify`, `consolidate`."""

import argparse
import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from pipelines.commands import Commands, aligned, command, command_group
from pipelines.graph.complete import COMPLETE, verified_outputs

# Where the checkpoints lie, seen from a checkpoints folder, a stage folder and a run folder.
PLACES = ("step-*", "checkpoints/step-*", "stages/*/*/checkpoints/step-*")
STAGES = ("", "stages/*/*/")
COLUMNS = ("stage", "step", "size", "when", "workers", "ZeRO", "precision", "whole", "metrics")
DIR_HELP = "a run folder, a stage folder, a folder of checkpoints, or one checkpoint"


@dataclass(frozen=True)
class Found:
    """What `list` shows of a checkpoint; None where the checkpoint does not record it.

    `problem` is empty when all its files exist with the right sizes.
    """

    path: str
    stage: str | None
    step: int
    bytes: int
    when: str
    workers: int | None
    zero_stage: int | None
    dtype: str | None
    metrics: dict[str, float]
    problem: str

    def row(self) -> tuple[str, ...]:
        return (
            _short(self.stage),
            f"{self.step:,}",
            f"{self.bytes / 1e6:,.1f} MB",
            self.when.replace("T", " ")[:16],
            _short(self.workers),
            _short(self.zero_stage),
            _short(self.dtype),
            "NO" if self.problem else "by size",
            ", ".join(f"{name} {_short(value)}" for name, value in self.metrics.items()) or "-",
        )


def add_checkpoint_commands(commands: Commands) -> None:
    """Add `checkpoint` and its verbs."""
    verbs = command_group(
        commands,
        "checkpoint",
        "list and verify the checkpoints of a run, and extract the weights",
        "convnextv2 checkpoint list runs/demo",
    )
    listing = command(
        verbs,
        "list",
        "list checkpoints with their step, size, workers and metrics",
        "convnextv2 checkpoint list runs/demo",
        _act_list,
    )

    verify = command(
        verbs,
        "verify",
        "compare checkpoints and the outputs of stages with their hashes, every byte; "
        "exit code 1 if one differs",
        "convnextv2 checkpoint verify runs/demo",
        _act_verify,
    )
    for verb in (listing, verify):
        verb.add_argument("folder", type=Path, metavar="DIR", help=DIR_HELP)

    consolidate = command(
        verbs,
        "consolidate",
        "write the model's weights as one fp32 safetensors file; needs no GPU",
        "convnextv2 checkpoint consolidate runs/demo/stages/pretrain/*/checkpoints/step-00000400 "
        "--output fcmae.safetensors",
        _act_consolidate,
    )
    consolidate.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a step-... folder"
    )
    consolidate.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="safetensors file to write"
    )
    consolidate.add_argument(
        "--ema", action="store_true", help="the moving average (EMA) of the weights instead"
    )


def _act_list(options: argparse.Namespace) -> int:
    found = [_look_at(path) for path in _checkpoints(options.folder)]
    aside = [str(path) for path in _matching(options.folder) if ".rejected-" in path.name]
    if options.json:
        content = {
            "folder": str(options.folder),
            "checkpoints": [asdict(each) for each in found],
            "set_aside": aside,
        }
        print(json.dumps(content, indent=1))
        return 0
    if found:
        print("\n".join(aligned([COLUMNS, *(each.row() for each in found)])))
    else:
        print(f"no checkpoints in {options.folder}")
    for each in found:
        if each.problem:
            print(f"not whole: {each.path}: {each.problem}")
    for path in aside:
        print(f"set aside: {path}: it was not whole, and training went on from before it")
    return 0


def _act_verify(options: argparse.Namespace) -> int:
    from cluster.checkpoint.store import CheckpointError, verify

    checkpoints = _checkpoints(options.folder)
    stages = _finished_stages(options.folder)
    if not checkpoints and not stages:
        raise ValueError(
            f"no checkpoints and no finished stages in {options.folder}; give {DIR_HELP}"
        )
    content: dict[str, list[dict[str, object]]] = {"checkpoints": [], "outputs": []}

    def say(kind: str, path: Path, problem: str, size: int) -> None:
        content[kind].append({"path": str(path), "good": not problem, "problem": problem})
        if not options.json:
            text = f"NOT GOOD: {problem}" if problem else f"good, {size / 1e6:,.1f} MB"
            print(f"{path}: {text}", flush=True)

    for path in checkpoints:
        try:
            say("checkpoints", path, "", verify(path).bytes)
        except CheckpointError as error:
            say("checkpoints", path, str(error), 0)
    for stage in stages:
        for name, problem, size in verified_outputs(stage):
            say("outputs", stage / name, problem, size)
    if options.json:
        print(json.dumps({"folder": str(options.folder), **content}, indent=1))
    return 0 if all(each["good"] for found in content.values() for each in found) else 1


def _act_consolidate(options: argparse.Namespace) -> int:
    from cluster.checkpoint.fragments import EMA_WEIGHT, WEIGHT
    from cluster.checkpoint.store import CheckpointError, verify
    from pipelines.training.weights.consolidate import consolidate

    path: Path = options.checkpoint
    if _checkpoints(path) != [path]:
        raise ValueError(
            f"{path} is no checkpoint; `convnextv2 checkpoint list {path}` shows those in it"
        )
    try:
        verified = verify(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not good, nothing is written: {error}") from error
    options.output.parent.mkdir(parents=True, exist_ok=True)
    kind, part = (EMA_WEIGHT, "EMA") if options.ema else (WEIGHT, "weights")
    written = consolidate(path, options.output, kind, metadata=verified.notes.get("weights"))
    if options.json:
        content = {
            "checkpoint": str(path),
            "step": verified.step,
            "ema": options.ema,
            **asdict(written),
        }
        print(json.dumps(content | {"file": str(written.file)}, indent=1))
    else:
        print(
            f"{written.file}: {part} of step {verified.step:,}, {written.parameters:,} "
            f"parameters in {written.tensors} tensors, {written.bytes / 1e6:,.1f} MB"
        )
    return 0


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were published in a folder of any kind, good or not, in order."""
    from cluster.checkpoint.store import MANIFEST, step_of, steps

    if (folder / MANIFEST).exists() or folder in steps(folder.parent):
        return [folder]
    parents = sorted({path.parent for path in _matching(folder)})
    return [path for parent in parents for path in sorted(steps(parent), key=step_of)]


def _matching(folder: Path) -> list[Path]:
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{folder} is a file; give {DIR_HELP}")
        raise ValueError(f"there is no folder {folder}")
    return sorted(path for pattern in PLACES for path in folder.glob(pattern))


def _finished_stages(folder: Path) -> list[Path]:
    """The finished stages of a stage folder or a run folder; in others there are none."""
    return sorted(path.parent for place in STAGES for path in folder.glob(f"{place}{COMPLETE}"))


def _look_at(path: Path) -> Found:
    from cluster.checkpoint.store import MANIFEST, Checkpoint, CheckpointError, step_of, verify

    problem = ""
    try:
        checkpoint = verify(path, contents=False)
    except CheckpointError as error:
        problem = str(error)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        checkpoint = Checkpoint(path, step_of(path), {}, size)
    notes = checkpoint.notes
    manifest = path / MANIFEST
    written = (manifest if manifest.exists() else path).stat().st_mtime
    return Found(
        path=str(path),
        stage=_stage_of(path),
        step=checkpoint.step,
        bytes=checkpoint.bytes,
        when=datetime.fromtimestamp(written).astimezone().isoformat(timespec="seconds"),
        workers=notes.get("world_size"),
        zero_stage=notes.get("zero_stage"),
        dtype=notes.get("dtype"),
        metrics=notes.get("metrics") or {},
        problem=problem,
    )


def _stage_of(path: Path) -> str | None:
    """The name in stages/NAME/KEY/checkpoints/step-..., if it lies in a run."""
    parts = path.resolve().parts
    return parts[-4] if len(parts) > 5 and parts[-5] == "stages" else None


def _short(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
