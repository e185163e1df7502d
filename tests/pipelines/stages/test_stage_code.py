"""A stage's key has the source of every module of the method that decides its result."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipelines.stages import write_data
from tests.pipelines.stages.test_stages import everything, shards, stages_of

__all__ = ["shards"]  # The fixture.

ROOT = Path(__file__).parents[3]
DECIDE_NOTHING = {
    "convnextv2.checks",  # Refuses what cannot be computed.
    "convnextv2.kernels.compiler",
    "convnextv2.data.labels.census",
    "convnextv2.data.collection",  # Shared types; what is listed and read is in the sources.
    "convnextv2.data.shards.local_cache",  # The same bytes from a nearer disk.
    "convnextv2.paths",
    "convnextv2.tasks",  # Names what its modules hold.
}
UNLABELLED = {"convnextv2.data.labels.classes", "convnextv2.data.labels.label_sets"}


def test_training_has_all_it_imports(shards: Path) -> None:
    stages = stages_of(shards, everything())
    assert left_out(stages["pretrain"].code) <= DECIDE_NOTHING | UNLABELLED
    for name in ("intermediate", "finetune", "finetune-scratch", "linear-probe"):
        assert left_out(stages[name].code) <= DECIDE_NOTHING


def test_writing_has_all_it_imports() -> None:
    # Classes are matched where shards are read.
    assert left_out(write_data.CODE) <= DECIDE_NOTHING | {"convnextv2.data.labels.classes"}


@pytest.mark.parametrize("name", ["convnextv2.data.batch", "convnextv2.tasks.normalization"])
def test_evaluation_has_what_images_become(shards: Path, name: str) -> None:
    stages = stages_of(shards, everything())
    assert all(name in stages[each].code for each in ("evaluate", "knn"))


def test_what_is_left_out_is_found() -> None:
    assert left_out(["convnextv2.data.batch"]) == set()
    assert left_out(["convnextv2.tasks.pretrain"]) > {"convnextv2.fcmae", "convnextv2.masking"}


def left_out(code: Sequence[str]) -> set[str]:
    """Modules of the method that those of `code` import, and that are not among them."""
    listed = {name: file for module in code for name, file in sources_of(module)}
    found = {name for file in listed.values() for name in imports_of(file)}
    return found - listed.keys()


def sources_of(module: str) -> Iterator[tuple[str, Path]]:
    """A module, or a package with everything below it."""
    path = ROOT.joinpath(*module.split("."))
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    for file in files:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), file


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("convnextv2"):
            continue
        for each in node.names:
            name = f"{node.module}.{each.name}"
            below = ROOT.joinpath(*name.split("."))
            yield name if below.is_dir() or below.with_suffix(".py").exists() else str(node.module)
