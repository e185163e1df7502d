"""The sizes of ConvNeXt V2 and of FCMAE's decoders as data (paper, section 4, A.1, Table 1)."""

from dataclasses import dataclass
from typing import TypedDict


@dataclass(frozen=True, kw_only=True)
class Size:
    """Depths and widths of the four stages; parameters of the 1000-class classifier (224, RGB)."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    parameters: int


SIZES: dict[str, Size] = {
    "atto": Size(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), parameters=3_708_400),
    "femto": Size(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), parameters=5_233_240),
    "pico": Size(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), parameters=9_066_280),
    "nano": Size(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), parameters=15_623_800),
    "tiny": Size(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768), parameters=28_635_496),
    "base": Size(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024), parameters=88_717_800),
    "large": Size(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536), parameters=197_956_840),
    "huge": Size(depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816), parameters=660_289_640),
    # Ours, not the paper's: small enough to pretrain on two CPU cores in minutes (the demo).
    "pocket": Size(depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), parameters=0),
}


def size_of(name: str) -> Size:
    """Return the size called `name`; raises ValueError naming the sizes there are."""
    if name not in SIZES:
        raise ValueError(f"unknown model size {name!r}; choose one of {', '.join(SIZES)}")
    return SIZES[name]


# FCMAE's decoders, and what their width must be a multiple of.
DECODER_UNITS = {"convnext": 1, "unet": 8, "unet-noskip": 8, "transformer": 32}


class DecoderChoice(TypedDict):
    """Arguments of `FCMAE.from_size`, and fields of `pretrain` in a pipeline's configuration."""

    decoder: str
    decoder_dim: int
    decoder_depth: int


def _row(decoder: str = "convnext", dim: int = 512, depth: int = 1) -> DecoderChoice:
    return DecoderChoice(decoder=decoder, decoder_dim=dim, decoder_depth=depth)


# Table 1, with the published top-1 of ConvNeXt-Base (V1; 800 epochs, fine-tuned for 100) behind
# each row. Width and depth of the UNets and the transformer are not published: width and depth
# are the default's, and the transformer's depth is MAE's.
TABLE_1: dict[str, DecoderChoice] = {
    "unet": _row("unet"),  # 83.7
    "unet-noskip": _row("unet-noskip"),  # 83.5
    "transformer": _row("transformer", depth=8),  # 83.4
    "convnext": _row(),  # 83.7
    "blocks-1": _row(depth=1),  # 83.7
    "blocks-2": _row(depth=2),  # 83.5
    "blocks-4": _row(depth=4),  # 83.7
    "blocks-8": _row(depth=8),  # 83.6
    "blocks-12": _row(depth=12),  # 83.3
    "dim-128": _row(dim=128),  # 83.5
    "dim-256": _row(dim=256),  # 83.7
    "dim-512": _row(dim=512),  # 83.7
    "dim-768": _row(dim=768),  # 83.6
    "dim-1024": _row(dim=1024),  # 83.5
}


def visible_count(num_patches: int, mask_ratio: float) -> int:
    """Patches left visible: floor(L x (1 - ratio)) as in the paper's code, at least one."""
    return max(1, int(num_patches * (1 - mask_ratio)))


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` around `value`, as words for an error message."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)
