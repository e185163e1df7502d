"""The sizes of ConvNeXt V2 as data (paper, section 4 and appendix A.1)."""

from dataclasses import dataclass


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
