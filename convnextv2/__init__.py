"""ConvNeXt V2 and FCMAE: the method, single-process maths and data (arXiv 2301.00808).

`pip install convnextv2` brings the method alone: model, FCMAE, weights, recipes. `pyproject.toml`
lists the extras with their versions, `EXTRA_MODULES` the modules that they bring.
"""

import os
from importlib.util import find_spec

PathLike = str | os.PathLike[str]
"""What a function takes for a path: text, a `pathlib.Path`, or whatever else names a file."""

_DATA = (
    "PIL",
    "cv2",
    "ffcv",
    "imagecodecs",
    "numba",
    "pyarrow",
    "scipy",
    "tifffile",
    "torchvision",
)
_TRAIN = (
    "deepspeed",
    "grpc",
    "jinja2",
    "matplotlib",
    "mlflow",
    "psutil",
    "pydantic",
    "ray",
    "rich",
    "yaml",
)
EXTRA_MODULES: dict[str, tuple[str, ...]] = {
    "data": _DATA,
    "train": (*_DATA, *_TRAIN),
    "spconv": ("spconv",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}


class MissingExtra(ModuleNotFoundError):
    """An extra of this project is not installed, or only in part."""


def require(extra: str, needed_by: str) -> None:
    """Say what to install before the first of many imports fails; imports nothing itself.

    Raises:
        MissingExtra: With the modules that are not there and the command that installs them.
    """
    missing = [name for name in EXTRA_MODULES[extra] if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{needed_by} needs {', '.join(missing)}: pip install 'convnextv2[{extra}]'"
        )
