"""Command `replay`: runs a step that was skipped for a NaN or infinity on the same samples."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from pipelines.commands import Commands, command, say


def add_replay_command(commands: Commands) -> None:
    """Add `replay`."""
    parser = command(
        commands,
        "replay",
        "repeat a step that was skipped for a NaN, and name the layer where it first appears",
        "convnextv2 replay runs/demo/stages/pretrain/0a1b2c3d/nonfinite/step-120-rank-1.json",
        _act,
    )
    parser.add_argument(
        "file",
        type=Path,
        help="a worker's record of the step: nonfinite/step-N-rank-R.json in the stage's folder",
    )


def _act(options: argparse.Namespace) -> int:
    say(f"reading {options.file}")
    from pipelines.stages import finetune, pretrain
    from pipelines.training.anomalies.nonfinite import job_of, read
    from pipelines.training.anomalies.replay import replay

    left_out = read(options.file)
    pretrains = "PretrainConfig" in left_out.settings["recipe"]
    build_task = pretrain.build_task if pretrains else finetune.build_task
    stage = options.file.resolve().parents[1]
    found = replay(job_of(left_out, stage, build_task), left_out)
    if options.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    near = "its own weights" if found.weights_of == left_out.step - 1 else "the nearest there are"
    print(
        f"step {left_out.step} of worker {left_out.rank}, epoch {left_out.epoch}, on the weights "
        f"of step {found.weights_of} ({near})"
    )
    for loss, samples in zip(found.losses, left_out.micro_batches, strict=True):
        print(f"  loss {loss:g}: samples {', '.join(map(str, samples))}")
    print(f"  while training the mean was {left_out.loss}")
    for group, norm in found.gradient_norms.items():
        print(f"  gradient norm {norm:g}: parameters with {group}")
    for what, where in (
        ("weight", found.in_weights),
        ("output", found.in_forward),
        ("gradient", found.in_backward),
    ):
        print(f"  first {what} that is not finite: {where or 'none'}")
    return 0
