"""From a checkpoint to the file that the next stage, and anybody else, starts from."""

from pathlib import Path

from safetensors.torch import save_file

from cluster.state_files import StateFiles
from cluster.states import WEIGHT
from pipelines.files import atomically

PREFIX = "model."


def export(checkpoint: Path, target: Path, kind: str = WEIGHT) -> None:
    """Write a checkpoint's fp32 weights, or their "average", as one safetensors file.

    Only the model's own, without the task around it; needs no GPU, no group and no engine.
    Parameters that are not trained have no average: theirs are the weights.

    Raises:
        ValueError: When the checkpoint does not hold them all.
    """
    files = StateFiles(checkpoint)
    state = {
        name.removeprefix(PREFIX): files.whole(kind if kind in files.kinds[name] else WEIGHT, name)
        for name in files
        if name.startswith(PREFIX)
    }
    with atomically(target) as partial:
        save_file(state, partial)
