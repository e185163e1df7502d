"""The house: rooms, directions of import, and where each heavy library comes in."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("convnextv2", "cluster", "pipelines")
FORBIDDEN = {
    "convnextv2": {"cluster", "pipelines", "ray", "deepspeed", "mlflow"},
    "cluster": {"convnextv2", "pipelines", "mlflow"},
    "pipelines": {"ray", "deepspeed"},
}
ONLY_IN = {
    "ray": {"cluster/launch.py"},
    "deepspeed": {"cluster/engine.py"},
    "mlflow": {"pipelines/tracking.py"},
}


def modules(room: str) -> Iterator[Path]:
    return (ROOT / room).rglob("*.py")


def imported(path: Path) -> set[str]:
    """First words of everything a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names


def test_the_rooms_are_these() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {*ROOMS, "tests"}
    assert not list((ROOT / "k8s").rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    files = list(modules(room))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[room], path


@pytest.mark.parametrize("library", ONLY_IN)
def test_each_heavy_library_comes_in_by_one_door(library: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in modules(room)
        if library in imported(path)
    }
    assert users == ONLY_IN[library]


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_says_what_it_is(room: str) -> None:
    for path in modules(room):
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("module", ["pipelines.cli", "pipelines.presets", "cluster.launch"])
def test_light_modules_stay_light(module: str) -> None:
    probe = (
        f"import sys, {module};"
        "print({'torch', 'ray', 'deepspeed', 'mlflow', 'numba', 'ffcv'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names_keep_their_signatures() -> None:
    """../shared/design.md, "Public names that stay"."""
    encoder = inspect.signature(ConvNeXtV2.from_size).parameters
    defaults = {name: parameter.default for name, parameter in encoder.items()}
    assert (
        defaults.items()
        >= {
            "num_classes": 1000,
            "in_channels": 3,
            "stem_stride": 4,
            "drop_path": 0.0,
        }.items()
    )
    fcmae = inspect.signature(FCMAE.from_size).parameters
    defaults = {name: parameter.default for name, parameter in fcmae.items()}
    assert (
        defaults.items()
        >= {
            "image_size": 224,
            "patch_size": 32,
            "mask_ratio": 0.6,
            "decoder": "convnext",
            "decoder_dim": 512,
            "decoder_depth": 1,
            "norm_pix_loss": True,
            "backend": "gather",
            "grn_scope": "image",
        }.items()
    )
    assert list(inspect.signature(FCMAE.forward).parameters) == [
        "self",
        "images",
        "mask",
        "generator",
    ]
    assert list(inspect.signature(FCMAE.encode).parameters) == ["self", "images", "mask"]
