"""A model with a collapsed block."""

import torch

from convnextv2.encoder import ConvNeXtV2


def collapse_block(model: ConvNeXtV2, name: str) -> None:
    """Make all channels of a block alike: the rows of its widening layer, and no GRN."""
    with torch.no_grad():
        for parameter in model.get_submodule(f"{name}.pwconv1").parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
        for parameter in model.get_submodule(f"{name}.grn").parameters():
            parameter.zero_()
