"""The JSON files of a Hugging Face folder, beside `model.safetensors`.

`config.json` builds the model and names its classes, `preprocessor_config.json` builds the image
processor, so that `AutoImageProcessor`, `ConvNextV2Backbone` and `pipeline("image-classification")`
work.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from convnextv2.weights.geometry import Geometry
from convnextv2.weights.metadata import Evaluation, Metadata

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
# Pillow's numbers of its filters. Transformers has no area filter; antialiased bilinear is close.
FILTERS = {"bicubic": 3, "area": 2}
# Names that transformers gives to classes without names.
NUMBERED = re.compile(r"LABEL_\d+")


def model_config(
    geometry: Geometry, classes: Sequence[str], evaluation: Evaluation
) -> dict[str, object]:
    """What `config.json` says; the model is built by it, and its number of classes by `id2label`.

    `layer_norm_eps` is the final norm's, 1e-12 by default there and 1e-6 in the published models.
    """
    head = geometry.num_classes > 0
    labels = list(classes) or [f"LABEL_{number}" for number in range(geometry.num_classes)]
    named = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    return {
        "architectures": ["ConvNextV2ForImageClassification" if head else "ConvNextV2Model"],
        "model_type": "convnextv2",
        "depths": list(geometry.depths),
        "hidden_sizes": list(geometry.dims),
        "num_stages": len(geometry.depths),
        "num_channels": geometry.in_channels,
        "patch_size": geometry.stem_stride,
        "image_size": evaluation.image_size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "drop_path_rate": 0.0,
        **(named if head else {}),
    }


def preprocessor_config(evaluation: Evaluation) -> dict[str, object]:
    """What `preprocessor_config.json` says.

    ConvNeXt's own processor is not used: it resizes without keeping the ratio if and only if the
    size is 384 px or more. BiT's processor does either, as configured.
    """
    side = evaluation.image_size
    square = {"height": side, "width": side}
    squash = evaluation.crop is None
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": len(evaluation.mean) == 3,
        "do_resize": True,
        "size": square if squash else {"shortest_edge": evaluation.shorter_side},
        "resample": FILTERS[evaluation.interpolation],
        "do_center_crop": not squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / ((1 << evaluation.bits) - 1),
        "do_normalize": True,
        "image_mean": list(evaluation.mean),
        "image_std": list(evaluation.std),
    }


def class_names_in(folder: Path) -> Metadata:
    """The class names that a folder's `config.json` says; none for `LABEL_0` and so on."""
    try:
        labels = json.loads((folder / CONFIG).read_text())["id2label"]
        classes = tuple(str(labels[str(number)]) for number in range(len(labels)))
    except (OSError, ValueError, LookupError, TypeError):
        return Metadata()
    return Metadata() if all(map(NUMBERED.fullmatch, classes)) else Metadata(classes=classes)
