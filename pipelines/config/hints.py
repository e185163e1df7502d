"""What an unknown name in a configuration probably means."""

import difflib
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel

RENAMED = {
    "control": ("scratch_baseline",),
    "train": ("trainable",),
    "keep_checkpoints": ("keep_last",),
    "warmup_epochs": ("warmup",),
    "epochs": ("duration",),
    "data.hold_out": ("data.val_fraction",),
    "data.limit": ("data.max_images",),
    "data.order": ("data.shuffle",),
    "augment.erasing": ("augment.random_erasing",),
    "knn.neighbours": ("knn.k",),
    "cluster.zero_stage": ("cluster.zero.stage",),
    "cluster.dtype": (
        "pretrain.dtype",
        "intermediate.dtype",
        "finetune.dtype",
        "linear_probe.dtype",
    ),
}
"""What names of settings ended in before, and what they end in now."""
ELSEWHERE = {
    "lr": "base_lr",
    "blr": "base_lr",
    "learning_rate": "base_lr",
    "batch_size": "global_batch_size",
    "update_freq": "micro_batch_size",
    "accumulation_steps": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "steps": "duration",
    "max_steps": "duration",
    "num_epochs": "duration",
    "train_epochs": "duration",
    "warmup_steps": "warmup",
    "wd": "weight_decay",
    "layer_lr_decay": "layer_decay",
    "clip_grad": "grad_clip",
    "max_grad_norm": "grad_clip",
    "gradient_clipping": "grad_clip",
    "precision": "dtype",
    "amp": "dtype",
    "fp16": "dtype",
    "bf16": "dtype",
    "ema": "ema_decay",
    "smoothing": "label_smoothing",
    "reprob": "random_erasing",
    "aa": "rand_augment",
    "input_size": "image_size",
    "img_size": "image_size",
    "resolution": "image_size",
    "masking_ratio": "mask_ratio",
    "workers": "num_workers",
    "num_gpus": "num_workers",
    "nproc_per_node": "num_workers",
    "device": "use_gpu",
    "gpu": "use_gpu",
    "pretrained": "weights",
    "init": "weights",
    "save_every": "checkpoint_every",
    "eval_every": "evaluate_every",
}
"""Names that settings have in other programs (timm, the papers' code, Lightning), and ours."""
MOST = 4
"""So many settings are named at most; a longer list helps nobody."""


def hint(dotted: str, schema: type[BaseModel]) -> str:
    """What the unknown key `dotted` is called now or here, or which is the nearest there is.

    All of it but the last name are sections of `schema`.
    """
    *above, name = dotted.split(".")
    model = schema
    for part in above:
        model = section(model, part) or model
    names = [".".join([*above, each]) for each in model.model_fields]
    fields = list(_fields(schema))
    for old, new in RENAMED.items():
        renamed = [dotted.removesuffix(old) + end for end in new]
        if f".{dotted}".endswith(f".{old}") and set(renamed) <= set(fields):
            return f"it is called {' or '.join(renamed)} now"
    known = ELSEWHERE.get(name, name)
    for found in (
        [each for each in names if each == ".".join([*above, known])],
        [each for each in fields if each.rpartition(".")[2] == known],
    ):
        if 0 < len(found) <= MOST:
            return f"did you mean {' or '.join(map(repr, found))}?"
    return nearest(dotted, names, otherwise=f"there are {', '.join(names)}")


def nearest(name: str, names: list[str], otherwise: str) -> str:
    """Words that name the closest of `names`, or else `otherwise`."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise


def section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section below `model` that the field `name` holds, if it holds one."""
    if name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    either = get_args(annotation)
    kinds = (annotation, *either, *(next(iter(get_args(kind)), None) for kind in either))
    sections = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return next(sections, None)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, and of those in their sections."""
    for name in model.model_fields:
        yield f"{prefix}{name}"
        below = section(model, name)
        if below is not None:
            yield from _fields(below, f"{prefix}{name}.")
