"""Layer-wise learning rate decay: which layer a parameter belongs to, by its name.

Two rules, as the original code numbers layers; the scale of layer i is decay ** (head - i).

single: every block is a layer, 1 .. sum(depths). The stem shares layer 1 with the first block, a
    downsampling layer the number of its stage's first block.
group: for depths 3, 3, 27, 3 only. Stem 0; the first two stages one layer each, 1 and 2; the third
    stage three blocks a layer, 3 .. 11; the last stage 12. Downsampling layers belong to the stage
    that they lead to.

Final norm, head and everything else after the last block are the last layer.
"""

from typing import Literal

Grouping = Literal["single", "group"]
GROUPED_DEPTHS = (3, 3, 27, 3)


def layer_scale(name: str, depths: tuple[int, ...], decay: float, grouping: Grouping) -> float:
    """What the learning rate of the parameter `name` is multiplied by.

    Raises:
        ValueError: For the rule "group" with depths for which it is not defined.
    """
    head = head_layer(depths, grouping)
    return decay ** (head - layer_of(name, depths, grouping))


def head_layer(depths: tuple[int, ...], grouping: Grouping) -> int:
    """Number of the last layer, whose scale is 1; raises ValueError as `layer_scale`."""
    if grouping == "single":
        return sum(depths) + 1
    if depths != GROUPED_DEPTHS:
        raise ValueError(
            f"layer decay by group is defined for depths {GROUPED_DEPTHS}, these are {depths}; "
            "single works for all"
        )
    return 13


def layer_of(name: str, depths: tuple[int, ...], grouping: Grouping = "single") -> int:
    """Layer number of a parameter; prefixes that wrappers put before its name do not matter."""
    place = _place(name)
    if place is None:
        return head_layer(depths, grouping)
    stage, block, is_stem = place
    if grouping == "single":
        return sum(depths[:stage]) + block + 1
    if is_stem:
        return 0
    return (1, 2, 3 + block // 3, 12)[stage]


def _place(name: str) -> tuple[int, int, bool] | None:
    """Stage, block and whether it is the stem; a downsampling layer counts as block 0."""
    parts = name.split(".")
    for kind, stage, block in zip(parts, parts[1:], [*parts[2:], ""], strict=False):
        if kind == "downsample_layers":
            return int(stage), 0, stage == "0"
        if kind == "stages":
            return int(stage), int(block), False
    return None
