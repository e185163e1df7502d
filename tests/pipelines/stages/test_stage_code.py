"""A stage's key has the source of every module that decides its result, and of no other."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.graph import Stage, code_digest
from pipelines.graph.closure import Sources
from pipelines.graph.exempt import EXEMPT
from pipelines.graph.keys import PACKAGES, installed_sources, name_of
from pipelines.training.weights.given import Given
from tests.pipelines.stages.test_stages import everything, shards, stages_of

__all__ = ["shards"]  # The fixture.

ROOT = Path(__file__).parents[3]
KINDS = ("write", "pretrain", "finetune", "evaluate", "knn", "report")
BY_NAME = {
    "pretrain": [
        "cluster/engine/adamw.py",
        "convnextv2/tasks/__init__.py",
        "convnextv2/data/order/permutation.py",
        "convnextv2/data/shards/mapped.py",
        "convnextv2/kernels/native.cpp",
        "convnextv2/data/decoding/resample.h",
        "pipelines/stages/pretrain.py",
        "pipelines/training/weights/consolidate.py",
    ],
    "evaluate": [
        "convnextv2/weights/__init__.py",
        "convnextv2/weights/loading.py",
        "convnextv2/sizes.py",
        "pipelines/stages/evaluate.py",
    ],
    "report": [
        "pipelines/graph/kinds.py",
        "pipelines/report/templates/report.html.j2",
        "pipelines/runtime/events.py",
    ],
}
ELSEWHERE = [
    "convnextv2/export.py",
    "convnextv2/weights/writing.py",
    "pipelines/bench/model.py",
    "pipelines/commands/weights.py",
    "pipelines/config/training.py",
    "pipelines/doctor/__init__.py",
    "pipelines/doctor/gpu/table.py",
    "pipelines/presets/demo.py",
    "pipelines/stages/evaluate.py",
    "pipelines/stages/report.py",
]


class Copy:
    """The sources in another folder, to be edited."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, root / name, ignore=ignored)

    @property
    def sources(self) -> Sources:
        return Sources({name: self.root / name for name in PACKAGES})

    def file(self, module: str) -> Path:
        found = self.sources.find(module)
        assert found is not None
        return found.file

    def digest(self, stage: Stage) -> str:
        return code_digest(stage.code, self.sources)

    @contextmanager
    def edited(self, *files: Path) -> Iterator[None]:
        before = {file: file.read_text() for file in files}
        for file, text in before.items():
            file.write_text(f"{text}\nEDITED = 1\n")
        yield
        for file, text in before.items():
            file.write_text(text)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def stages(shards: Path) -> dict[str, Stage]:
    return stages_of(shards, everything())


def closure(stage: Stage, without: str = "") -> set[str]:
    names = [name_of(function) for function in stage.code]
    return set(installed_sources(PACKAGES).closure(names, EXEMPT - {without}))


def test_an_edit_of_any_module_of_a_closure_moves_the_key(
    stages: dict[str, Stage], copy: Copy
) -> None:
    before = {name: copy.digest(stages[name]) for name in KINDS}
    assert before == {name: code_digest(stages[name].code) for name in KINDS}
    whose = {module: name for name in KINDS for module in closure(stages[name])}
    for module, name in whose.items():
        with copy.edited(copy.file(module)):
            assert copy.digest(stages[name]) != before[name], module
    assert {name: copy.digest(stages[name]) for name in KINDS} == before


@pytest.mark.parametrize(
    ("name", "file"), [(n, file) for n, files in BY_NAME.items() for file in files]
)
def test_an_edit_of_what_was_missed_once_moves_the_key(
    name: str, file: str, stages: dict[str, Stage], copy: Copy
) -> None:
    before = copy.digest(stages[name])
    with copy.edited(copy.root / file):
        assert copy.digest(stages[name]) != before


@pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate", "knn"])
def test_edits_of_what_is_exempt_leave_the_key(
    name: str, stages: dict[str, Stage], copy: Copy
) -> None:
    before = copy.digest(stages[name])
    files = [file for entry in EXEMPT for file in files_of(copy.root, entry)]
    with copy.edited(*files):
        assert copy.digest(stages[name]) == before


@pytest.mark.parametrize("file", ELSEWHERE)
def test_edits_elsewhere_leave_pretrainings_key(
    file: str, stages: dict[str, Stage], copy: Copy
) -> None:
    before = copy.digest(stages["pretrain"])
    with copy.edited(copy.root / file):
        assert copy.digest(stages["pretrain"]) == before


def test_evaluation_has_nothing_of_training(stages: dict[str, Stage]) -> None:
    found = closure(stages["evaluate"])
    assert not [name for name in found if name.startswith(("cluster.engine", "convnextv2.recipe"))]
    assert "pipelines.training.loop" not in found


@pytest.mark.parametrize("entry", sorted(EXEMPT))
def test_everything_exempt_is_used_by_a_stage(entry: str, stages: dict[str, Stage]) -> None:
    assert files_of(ROOT, entry), f"there is no {entry}"
    given = replace(stages["pretrain"], code=(Given.copy,))  # As with pretrain.weights.
    used = [*stages.values(), given]
    assert any(closure(stage) != closure(stage, without=entry) for stage in used)


def files_of(root: Path, entry: str) -> list[Path]:
    """The files of a package, or the one file of a module or of what it defines."""
    sources = Sources({name: root / name for name in PACKAGES})
    module, rest = sources.split(entry.removesuffix(".__init__"))
    if module is None or (rest and rest[0] not in module.definitions):
        return []
    if module.file.name == "__init__.py" and not entry.endswith("__init__"):
        return sorted(module.file.parent.rglob("*.py"))
    return [module.file]
