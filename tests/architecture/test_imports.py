"""The house: which rooms there are, who may import whom, and the names that stay."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from convnextv2 import weights
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE, FCMAEOutput

ROOT = Path(__file__).parents[2]
ROOMS = {"convnextv2", "cluster", "pipelines", "k8s", "tests"}
SOURCES = ("convnextv2", "cluster", "pipelines")
# Not rooms: nothing in them is imported.
AROUND = {".ci", "docs", "scripts"}

FORBIDDEN = {
    "convnextv2": {"cluster", "pipelines", "tests", "ray", "deepspeed", "mlflow"},
    "cluster": {"convnextv2", "pipelines", "tests", "mlflow"},
    "pipelines": {"tests"},
}
# What the benchmark of faults compares with, by plain Ray Train.
RIVAL = "pipelines/bench/faults/ray_train.py"
HOMES = {
    "ray": {
        "cluster/ray/agents.py",
        "cluster/launch.py",
        "cluster/ray/prometheus.py",
        "cluster/ray/access.py",
        "cluster/ray/tasks.py",
        RIVAL,
    },
    "deepspeed": {"cluster/engine/deepspeed_import.py", RIVAL},
    "mlflow": {"pipelines/runtime/tracking/tracker.py"},
}
FFCV = "convnextv2/data/ffcv_compat.py"


@cache
def tracked() -> tuple[Path, ...]:
    """Files of the project, also those not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(path for path in map(Path, listed.stdout.splitlines()) if (ROOT / path).exists())


def modules(room: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.parts[0] == room]


def imports_of(path: Path) -> set[str]:
    """Top-level packages a file imports, wherever in it, also by name through importlib."""
    return set(packages_in(ast.parse((ROOT / path).read_text()), room=path.parts[0]))


def packages_in(tree: ast.AST, room: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield room if node.level else (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and named(node.func) in {"import_module", "__import__"}:
            name = node.args[0] if node.args else None
            assert isinstance(name, ast.Constant), "an import of a computed name cannot be checked"
            yield str(name.value).partition(".")[0]


def named(function: ast.expr) -> str:
    return str(getattr(function, "attr", None) or getattr(function, "id", ""))


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import ray.train as r, os", {"ray", "os"}),
        ("def f():\n    from mlflow.entities import Metric", {"mlflow"}),
        ("from . import gather", {"here"}),
        ("import importlib\nimportlib.import_module('ray.train')", {"importlib", "ray"}),
        ("__import__('deepspeed')", {"deepspeed"}),
        ("text = 'import ray'", set()),
    ],
)
def test_imports_are_found_however_they_are_written(code: str, packages: set[str]) -> None:
    assert set(packages_in(ast.parse(code), room="here")) == packages


def test_there_are_five_rooms() -> None:
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1}
    assert folders <= ROOMS | AROUND
    assert folders >= ROOMS


def test_code_lives_in_the_rooms_and_kubernetes_is_data() -> None:
    homes = {path.parts[0] for path in tracked() if path.suffix == ".py"}
    assert homes == ROOMS - {"k8s"}


@pytest.mark.parametrize("room", SOURCES)
def test_imports_go_the_right_way(room: str) -> None:
    assert len(modules(room)) > 5
    wrong = {str(path): imports_of(path) & FORBIDDEN[room] for path in modules(room)}
    assert {path: packages for path, packages in wrong.items() if packages} == {}


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_a_library_enters_where_it_is_at_home(library: str, homes: set[str]) -> None:
    users = {
        path.as_posix() for room in SOURCES for path in modules(room) if library in imports_of(path)
    }
    assert users == homes


def test_ffcv_and_what_numba_compiles_enter_by_one_file() -> None:
    # Whoever comes before it pays seconds for FFCV's import and has numba keep stale code.
    inside = modules("convnextv2")
    assert {path.as_posix() for path in inside if "ffcv" in imports_of(path)} == {FFCV}
    assert [path.as_posix() for path in inside if "njit" in names_from(path, "numba")] == [FFCV]


def names_from(path: Path, package: str) -> set[str]:
    """What a file imports from a package by name."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    found = [n.names for n in nodes if isinstance(n, ast.ImportFrom) and n.module == package]
    return {alias.name for names in found for alias in names}


def test_pipelines_joins_the_two() -> None:
    joined = set().union(*(imports_of(path) for path in modules("pipelines")))
    assert {"convnextv2", "cluster"} <= joined


def test_every_module_says_what_it_is() -> None:
    silent = [
        path.as_posix()
        for path in tracked()
        if path.suffix == ".py"
        and (code := (ROOT / path).read_text()).strip()
        and ast.get_docstring(ast.parse(code)) is None
    ]
    assert silent == []


HEAVY = ("torch", "numba", "ffcv", "timm", "ray", "deepspeed", "mlflow")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        # A wrong setting is said in the first second; the doctor must run where they are broken.
        ("pipelines.presets, pipelines.cli, pipelines.doctor.diagnose", HEAVY),
        # Dynamo takes a second and more, which only whoever compiles a model should wait.
        (
            "convnextv2.encoder, convnextv2.fcmae, convnextv2.weights",
            (*HEAVY[1:], "triton", "torch._dynamo"),
        ),
        (
            "convnextv2.data.loading.loader, convnextv2.data.writing, convnextv2.tasks.pretrain",
            HEAVY[3:],
        ),
        # It must run where there is PyTorch and Triton, and nothing else of ours.
        ("pipelines.doctor.gpu.__main__", (*HEAVY[1:], "pydantic", "rich", "spconv")),
        (
            "cluster.launch, cluster.engine.deepspeed_engine, cluster.checkpoint.store, "
            "pipelines.runtime.tracking",
            HEAVY[4:],
        ),
    ],
)
def test_importing_loads_no_more_than_is_needed(module: str, absent: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print(*[name for name in {absent!r} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []


REQUIRED = inspect.Parameter.empty

NAMES_THAT_STAY: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (
        ConvNeXtV2.from_size,
        {
            "size": REQUIRED,
            "num_classes": 1000,
            "in_channels": 3,
            "stem_stride": 4,
            "drop_path": 0.0,
        },
    ),
    (
        FCMAE.from_size,
        {
            "size": REQUIRED,
            "image_size": 224,
            "patch_size": 32,
            "mask_ratio": 0.6,
            "decoder": "convnext",
            "decoder_dim": 512,
            "decoder_depth": 1,
            "norm_pix_loss": True,
            "backend": "gather",
            "grn_scope": "image",
        },
    ),
    (FCMAE.forward, {"self": REQUIRED, "images": REQUIRED, "mask": None, "generator": None}),
    (FCMAE.encode, {"self": REQUIRED, "images": REQUIRED, "mask": REQUIRED}),
    (weights.read, {"path": REQUIRED}),
    (weights.convert, {"state": REQUIRED, "to": REQUIRED}),
]


@pytest.mark.parametrize(
    ("function", "expected"), NAMES_THAT_STAY, ids=[f.__qualname__ for f, _ in NAMES_THAT_STAY]
)
def test_public_signatures_stay(function: Callable[..., Any], expected: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in expected} == expected
    # Whatever is added has a default, so that calls written today go on working.
    assert all(p.default is not REQUIRED for n, p in parameters.items() if n not in expected)


def test_public_objects_stay() -> None:
    model = FCMAE.from_size("pocket", image_size=16, patch_size=8, stem_stride=1, decoder_dim=8)
    assert isinstance(model, nn.Module)
    assert isinstance(model.encoder, ConvNeXtV2)
    assert model.encoder.head is None
    assert list(inspect.signature(FCMAEOutput).parameters) == ["loss", "prediction", "mask"]


def test_no_test_is_ever_skipped() -> None:
    """What a test needs is in the extra `dev`; one that needs more fails and says so."""
    skips = re.compile(r"pytest\.(skip|importorskip|xfail)\b|mark\.(skip|skipif|xfail)\b")
    here = Path(__file__).relative_to(ROOT)
    found = [path for path in modules("tests") if skips.search((ROOT / path).read_text())]
    assert [path.as_posix() for path in found if path != here] == []
