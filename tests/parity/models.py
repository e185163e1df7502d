"""Our classifiers, of every published size, with weights that no mistake can hide behind."""

import torch
from torch import Tensor

from convnextv2.encoder import ConvNeXtV2

SIZES = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
CLASSES = 11


def classifier(size: str, dtype: torch.dtype = torch.float32) -> ConvNeXtV2:
    """In eval mode; GRN, norms and biases are random too, which start as 0 or 1.

    Drawn into empty memory: the usual initialisation of Huge takes longer than the test.
    """
    with torch.device("meta"):
        model = ConvNeXtV2.from_size(size, num_classes=CLASSES)
    model = model.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".grn." not in name and parameter.ndim > 1:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                is_scale = parameter.ndim == 1 and name.endswith(".weight")
                parameter.normal_(float(is_scale), 0.3, generator=generator)
    return model.eval()


def images(size: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Square, wide and high ones; of the widest models a small one, for time."""
    shapes = ((2, 3, 64, 64), (1, 3, 64, 96), (1, 3, 96, 32))
    if size in ("base", "large", "huge"):
        shapes = ((1, 3, 64, 32), (1, 3, 32, 64), (2, 3, 32, 32))
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
