"""Weights that no mistake can hide behind, and the original's files made from them.

What is written here about the original's files follows its code and MinkowskiEngine's, and shares
nothing with `convnextv2.weights`.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from convnextv2.encoder import ConvNeXtV2
from tests.convnextv2.fcmae.small_fcmae import small_fcmae

State = dict[str, Tensor]


def classifier_state(num_classes: int = 5) -> State:
    """Four narrow stages, stem stride 4, fp32; every value is random, so no kernel is symmetric."""
    model = ConvNeXtV2(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), num_classes=num_classes)
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in model.state_dict().items()
    }


def encoder_state() -> State:
    return {
        name: value
        for name, value in classifier_state().items()
        if not name.startswith(("norm.", "head."))
    }


def fcmae_state(decoder: str = "convnext", dim: int = 32, depth: int = 2) -> State:
    model = small_fcmae(decoder=decoder, decoder_dim=dim, decoder_depth=depth, stem_stride=4)
    return dict(model.float().state_dict())


def sparse_kernel(weight: Tensor) -> Tensor:
    """(O, I, K, K) or (C, 1, K, K) as MinkowskiEngine stores it.

    Position by position, height fastest: (K*K, I, O), or (K*K, C) of a depthwise convolution.
    """
    depthwise = weight.shape[1] == 1
    side = weight.shape[-1]
    positions = []
    for column in range(side):
        for row in range(side):
            at = weight[:, :, row, column]
            positions.append(at[:, 0] if depthwise else at.T)
    return torch.stack(positions).contiguous()


def sparse_training_state(state: Mapping[str, Tensor]) -> State:
    """What the original's training writes under "model" for an FCMAE of ours.

    The stem and the decoder are ordinary modules there.
    """
    written: State = {}
    for name, value in state.items():
        parts = name.split(".")
        stem = name.startswith("encoder.downsample_layers.0.")
        if parts[0] != "encoder" or stem:
            written[name] = value
        elif parts[-1] == "weight" and value.ndim == 4:
            written[name.removesuffix("weight") + "kernel"] = sparse_kernel(value)
        elif parts[-1] == "bias" and _is_convolution(name):
            written[name] = value[None]
        elif parts[-2] == "grn":
            written[name] = value.reshape(1, -1)
        else:
            inner = "linear" if "pwconv" in parts[-2] else "ln"
            written[".".join([*parts[:-1], inner, parts[-1]])] = value
    return written


def _is_convolution(name: str) -> bool:
    return re.search(r"dwconv|downsample_layers\.\d\.1\.", name) is not None


def officially_fine_tuned_from(state: Mapping[str, Tensor]) -> State:
    """What the original's `main_finetune.py` loads of a file's "model".

    It drops the decoder by parts of its names, and `remap_checkpoint_keys` strips `encoder.` and
    unpacks kernels; then it gives whatever is called grn two more dimensions in front.
    """
    loaded: State = {}
    for name, value in state.items():
        if any(part in name for part in ("decoder", "mask_token", "proj", "pred")):
            continue
        name = name.partition(".")[2] if name.startswith("encoder") else name
        if name.endswith("kernel"):
            side = int(len(value) ** 0.5)
            channels_first = value.permute(*range(value.ndim - 1, -1, -1))
            shape = (*(channels_first.shape[:-1] if value.ndim == 3 else (-1, 1)), side, side)
            loaded[name[: -len("kernel")] + "weight"] = channels_first.reshape(shape).mT
            continue
        words = name.split(".")
        if "ln" in name or "linear" in name:
            words.pop(-2)
        loaded[".".join(words)] = value
    for name, value in loaded.items():
        if name.endswith("bias") and value.ndim != 1:
            loaded[name] = value.reshape(-1)
        elif "grn" in name:
            loaded[name] = value[None, None]
    return loaded
