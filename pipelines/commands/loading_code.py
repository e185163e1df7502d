"""Python that loads what was converted, as it is printed; the tests run it word for word."""

from pathlib import Path

from convnextv2.sizes import SIZES
from convnextv2.weights import Geometry


def how_to_load(geometry: Geometry, destination: Path, to: str) -> list[str]:
    """Lines of Python; none for the official code, which has a command line."""
    path = str(destination.absolute())
    if to == "timm":
        strict = "" if geometry.num_classes else ", strict=False"
        return [
            "import timm",
            f"model = {_timms_model(geometry)}",
            f"timm.models.load_checkpoint(model, {path!r}{strict})",
        ]
    if to == "hf" and geometry.num_classes:
        return [
            "from transformers import AutoModelForImageClassification",
            f"model = AutoModelForImageClassification.from_pretrained({path!r})",
        ]
    if to == "hf":
        # The class AutoBackbone would choose; that of transformers 5.24 takes no local folder.
        return [
            "from transformers import ConvNextV2Backbone",
            f"model = ConvNextV2Backbone.from_pretrained({path!r}, out_indices=(1, 2, 3, 4))",
        ]
    return []


def _timms_model(geometry: Geometry) -> str:
    """The call that builds it; arguments that are the usual ones are left out."""
    arguments = {
        "num_classes": (geometry.num_classes, 1000),
        "in_chans": (geometry.in_channels, 3),
        "patch_size": (geometry.stem_stride, 4),
    }
    said = [f"{name}={value}" for name, (value, usual) in arguments.items() if value != usual]
    if geometry.size in SIZES and SIZES[geometry.size].parameters:
        return f"timm.create_model({', '.join([repr(f'convnextv2_{geometry.size}'), *said])})"
    # A size timm has no name for.
    shape = [f"depths={geometry.depths}", f"dims={geometry.dims}"]
    grn = ["use_grn=True", "ls_init_value=None"]
    return f"timm.models.convnext.ConvNeXt({', '.join([*shape, *said, *grn])})"
