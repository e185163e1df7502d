"""Reading weights of any kind, the checkpoints of a run among them.

`convnextv2.weights` reads whole models, `cluster.checkpoint.fragment_files` the fragments
that workers save.
"""

from pathlib import Path

from cluster.checkpoint.fragment_files import StateFiles
from cluster.checkpoint.fragments import EMA_WEIGHT, WEIGHT
from cluster.checkpoint.store import CheckpointError, verify
from convnextv2 import weights
from convnextv2.weights import Inspection, Metadata, WeightsError
from convnextv2.weights.files import Contents
from convnextv2.weights.folders import is_checkpoint
from pipelines.training.weights.consolidate import PREFIX

# Of a checkpoint: what `part` may be, and its kind in the fragments.
PARTS = {"ema": EMA_WEIGHT, "weights": WEIGHT}


def inspect(path: Path, *, part: str | None = None) -> Inspection:
    """Read any file that `convnextv2.weights.inspect` reads, or a checkpoint folder of a run.

    Args:
        path: File or folder.
        part: Where it has several models; see `convnextv2.weights.inspect`. Of a checkpoint,
            "ema" is the moving average of its weights.

    Raises:
        WeightsError: When it is missing, damaged, or no ConvNeXt V2's.
    """
    if not is_checkpoint(path):
        return weights.inspect(path, part=part)
    try:
        notes = verify(path).notes
        files = StateFiles(path)
        names = [name for name in files if name.startswith(PREFIX)]
        kinds = {kind for name in names for kind in files.kinds[name]}
        parts = [part for part, kind in PARTS.items() if kind in kinds]
        part = part or "weights"
        if part not in parts:
            raise WeightsError(f"{path} has no part {part!r}; it has {', '.join(parts)}")
        kind = PARTS[part]
        state = {
            name.removeprefix(PREFIX): files.whole(
                kind if kind in files.kinds[name] else WEIGHT, name
            )
            for name in names
        }
    except (CheckpointError, OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    return weights.inspect_contents(
        Contents(
            files=tuple(sorted(path.glob("rank-*.safetensors"))),
            container="checkpoint of a run",
            state=state,
            part=part,
            parts=tuple(parts),
            metadata=Metadata.of_entries(notes.get("weights")),
        )
    )
