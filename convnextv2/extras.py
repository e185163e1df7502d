"""What `pip install convnextv2` leaves out, and the sentence for whoever lacks it.

Alone it brings the method: model, FCMAE, weights, recipes. `pyproject.toml` has the extras with
their versions; here are the modules they bring, as they are imported.
"""

from importlib.util import find_spec

DATA = ("PIL", "cv2", "ffcv", "imagecodecs", "numba", "pyarrow", "scipy", "tifffile", "torchvision")
TRAIN = ("deepspeed", "jinja2", "matplotlib", "mlflow", "psutil", "pydantic", "ray", "rich", "yaml")
MODULES: dict[str, tuple[str, ...]] = {
    "data": DATA,
    "train": (*DATA, *TRAIN),
    "spconv": ("spconv",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}


class MissingExtra(ModuleNotFoundError):
    """An extra of this project is not installed, or not wholly."""


def require(extra: str, needed_by: str) -> None:
    """Say what to install before the first of many imports fails. Imports nothing itself.

    Raises:
        MissingExtra: With the modules that are not there and the command that installs them.
    """
    missing = [name for name in MODULES[extra] if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{needed_by} needs {', '.join(missing)}: pip install 'convnextv2[{extra}]'"
        )
