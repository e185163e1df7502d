"""Each level of the installation works where the others are not, and says what it lacks."""

import re
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from convnextv2 import EXTRA_MODULES
from tests.architecture.environment import (
    EXTRAS,
    PROJECT,
    ROOT,
    absent,
    brought_by,
    packages_of_modules,
    run,
)

# Of the method, what only makes sense with more: how images get in, or one backend's library.
NEEDS = {
    "convnextv2.analysis.images": "data",
    "convnextv2.analysis.reconstruct": "data",
    "convnextv2.data": "data",
    "convnextv2.fcmae.sparse.spconv_ops": "spconv",
    "convnextv2.fcmae.sparse.spconv_sites": "spconv",
    "convnextv2.weights.starting": "data",
}


def modules(*rooms: str) -> list[str]:
    paths = [path.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py")]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if not name.endswith("__main__"))


def extra_of(module: str) -> str | None:
    return next((NEEDS[name] for name in NEEDS if f"{module}.".startswith(f"{name}.")), None)


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def test_what_an_extra_brings_is_what_is_looked_for() -> None:
    packages = packages_of_modules()
    for extra, names in EXTRA_MODULES.items():
        found = {canonicalize_name(package) for name in names for package in packages[name]}
        assert brought_by(extra) <= found, extra
        assert len(names) == len(brought_by(extra)), extra


def test_the_blocker_leaves_a_level_nothing_of_the_others() -> None:
    assert {"torch", "numpy", "safetensors", "sympy"} & absent(()) == set()
    # PyTorch brings jinja2 itself.
    assert {*EXTRA_MODULES["train"], "timm", "pytest"} - {"jinja2"} <= absent(())
    assert absent(("train",)) < absent(("data",)) < absent(())
    assert "No module named 'timm'" in run("import timm").stderr


def test_everything_is_all_and_a_developer_has_all() -> None:
    assert set(EXTRAS) == {*EXTRA_MODULES, "all", "dev"}
    assert brought_by("all") == set().union(*(brought_by(extra) for extra in EXTRA_MODULES))
    assert brought_by("dev") > brought_by("all")
    assert sorted(line.partition(">")[0] for line in PROJECT["dependencies"]) == [
        "numpy",
        "safetensors",
        "torch",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extras", "rooms"),
    [((), ("convnextv2",)), (("data",), ("convnextv2",)), (("train",), ("cluster", "pipelines"))],
    ids=["alone", "data", "train"],
)
def test_every_module_imports_with_its_level(extras: tuple[str, ...], rooms: tuple[str]) -> None:
    chosen = [name for name in modules(*rooms) if extra_of(name) in (None, *extras)]
    assert len(chosen) > 40
    done = run(
        f"import importlib\nfor name in {chosen}:\n    importlib.import_module(name)", *extras
    )
    assert done.returncode == 0, done.stderr


METHOD = """
import torch
from convnextv2 import weights
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from convnextv2.recipe.schedule import WarmupCosine

model = FCMAE.from_size("atto", image_size=64, patch_size=32, decoder_dim=16)
groups = parameter_groups(model, GroupRule(weight_decay=0.05), model.encoder.depths)
rate = WarmupCosine(peak=1e-3, total_steps=10).at(0)
before = model.encoder.stages[0][0].dwconv.weight.detach().clone()
model(torch.randn(2, 3, 64, 64)).loss.backward()
torch.optim.AdamW(groups, lr=rate).step()
assert not torch.equal(model.encoder.stages[0][0].dwconv.weight, before)

ours = model.encoder.state_dict()
weights.write(ours, f"{folder}/timm.safetensors", to="timm")
state = weights.read(f"{folder}/timm.safetensors")
assert all(torch.equal(state[name], ours[name]) for name in ours)
classifier = ConvNeXtV2.from_size("atto", num_classes=5).eval()
weights.load(classifier, state, may_miss=("head.", "norm."))
assert classifier(torch.randn(1, 3, 64, 64)).shape == (1, 5)
for library in ("official", "timm", "hf"):
    assert weights.convert(ours, to=library)
"""


@pytest.mark.slow
def test_the_method_alone_pretrains_and_reads_and_writes_weights(tmp_path: Path) -> None:
    done = run(f"folder = {str(tmp_path)!r}{METHOD}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [name for name in NEEDS if NEEDS[name] == "data"])
def test_a_module_that_needs_images_names_the_extra(module: str) -> None:
    done = run(f"import {module}")
    assert last_line(done.stderr) == (
        f"convnextv2.MissingExtra: convnextv2.data needs {', '.join(EXTRA_MODULES['data'])}: "
        "pip install 'convnextv2[data]'"
    )


@pytest.mark.parametrize("module", ["cluster.launch", "cluster.ray.start", "cluster.ray.tasks"])
def test_what_runs_on_ray_names_the_extra(module: str) -> None:
    done = run(f"import {module}")
    assert last_line(done.stderr) == (
        "ModuleNotFoundError: cluster.launch needs psutil, ray: pip install 'convnextv2[train]'"
    )


@pytest.mark.slow
def test_engine_checkpoints_and_gpus_work_without_ray() -> None:
    names = [name for name in modules("cluster") if name.startswith("cluster.checkpoint")]
    names += ["cluster.engine.deepspeed_engine", "cluster.gpu", "cluster.placement"]
    block = 'absent |= {"ray", "psutil"}\nimport importlib\n'
    done = run(f"{block}for name in {names}:\n    importlib.import_module(name)", "train")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extras", [(), ("data",)], ids=["alone", "data"])
def test_the_command_without_its_extra_is_one_sentence(extras: tuple[str, ...]) -> None:
    start = "import sys\nfrom pipelines.__main__ import main\nsys.exit(main())"
    done = run(start, *extras)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: the command convnextv2 needs [\w, ]*mlflow, [\w, ]*: "
        r"pip install 'convnextv2\[train\]'\n",
        done.stderr,
    )
    assert ("numba" in done.stderr) == (not extras)


def test_the_installed_command_is_that_one() -> None:
    assert PROJECT["scripts"] == {"convnextv2": "pipelines.__main__:main"}
    assert (
        "usage: convnextv2"
        in run(
            "import sys\nsys.argv = ['convnextv2', '--help']\n"
            "from pipelines.__main__ import main\nmain()",
            "train",
        ).stdout
    )
