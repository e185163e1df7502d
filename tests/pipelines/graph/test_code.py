"""A digest of code: which modules a function's closure has, and which edits of them count."""

from pathlib import Path
from textwrap import dedent

import pytest

from pipelines.graph import code_digest
from pipelines.graph.closure import Sources
from pipelines.graph.source import Module

KITCHEN = {
    "__init__.py": "from kitchen.bread import bake\n__all__ = ['bake']",
    "bread.py": "def bake(): ...\ndef eat(): ...",
    "butter.py": "from kitchen import jam\nSALT = 1\ndef spread(): jam.boil()",
    "jam.py": "from kitchen.fruit import PLUMS, PEARS\ndef boil(): PLUMS\ndef sell(): PEARS",
    "fruit.py": "PLUMS = 1\nPEARS = 2",
    "oven.py": "print('hot')",
    "deep/__init__.py": "",
    "deep/shelf.py": "class Shelf: ...",
}


def kitchen(folder: Path, cook: str) -> Sources:
    for name, text in {**KITCHEN, "cook.py": dedent(cook)}.items():
        path = folder / "kitchen" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Sources({"kitchen": folder / "kitchen"})


@pytest.mark.parametrize(
    ("cook", "found"),
    [
        ("def run(): ...", ""),
        ("from kitchen.fruit import PLUMS\ndef run(): PLUMS", "fruit"),
        ("from kitchen.fruit import PLUMS\ndef run(): ...\ndef other(): PLUMS", ""),
        ("from kitchen.fruit import PLUMS\ndef run(): help()\ndef help(): PLUMS", "fruit"),
        ("def run():\n    from kitchen.fruit import PLUMS", "fruit"),
        ("from kitchen import bake\ndef run(): bake()", "bread"),
        ("import kitchen\ndef run(): kitchen.bake()", "bread"),
        ("import kitchen.fruit\ndef run(): kitchen.fruit.PLUMS", "fruit"),
        ("import kitchen.fruit as f\ndef run(): f.PLUMS", "fruit"),
        ("from .fruit import PLUMS as p\ndef run(): p", "fruit"),
        ("from kitchen.deep.shelf import Shelf\ndef run(): Shelf.of.all", "deep deep.shelf"),
        # Of a module only what is used; of one that is handed on, all.
        ("from kitchen.butter import SALT\ndef run(): SALT", "butter"),
        ("from kitchen.butter import spread\ndef run(): spread()", "butter fruit jam"),
        ("from kitchen import butter\ndef run(): butter.SALT", "butter"),
        ("from kitchen import butter\ndef run(): [butter]", "butter fruit jam"),
        # What a class or an annotation names.
        ("from kitchen.fruit import PLUMS\ndef run(x: PLUMS): ...", "fruit"),
        ("from kitchen.fruit import PLUMS\nclass Of(PLUMS): ...\ndef run(): Of", "fruit"),
        # What happens at import.
        ("import kitchen.oven\ndef run(): ...", "oven"),
        ("from kitchen import oven  # noqa: F401\ndef run(): ...", "oven"),
        ("from kitchen.fruit import PLUMS\nprint(PLUMS)\ndef run(): ...", "fruit"),
        ("from kitchen.fruit import PLUMS\n@register\ndef op(): PLUMS\ndef run(): ...", "fruit"),
        ("try:\n    from kitchen.fruit import P\nexcept: P = 1\ndef run(): P", "fruit"),
        # For types only.
        (
            """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from kitchen.fruit import PLUMS
            def run(x: "PLUMS"): ...
            """,
            "",
        ),
    ],
)
def test_the_closure_of_a_function(cook: str, found: str, tmp_path: Path) -> None:
    closure = kitchen(tmp_path, cook).closure(["kitchen.cook.run"])
    names = {"kitchen", "kitchen.cook"} | {f"kitchen.{name}" for name in found.split()}
    assert closure.keys() == names


@pytest.mark.parametrize(
    ("exempt", "found"),
    [
        ("kitchen.jam", "butter"),
        ("kitchen.jam.boil", "butter"),
        ("kitchen.fruit.PLUMS", "butter jam"),
        ("kitchen.fruit.PEARS", "butter fruit jam"),
    ],
)
def test_what_is_exempt_is_not_looked_into(exempt: str, found: str, tmp_path: Path) -> None:
    sources = kitchen(tmp_path, "from kitchen.butter import spread\ndef run(): spread()")
    closure = sources.closure(["kitchen.cook.run"], {exempt, "kitchen.__init__"})
    assert closure.keys() == {"kitchen.cook"} | {f"kitchen.{name}" for name in found.split()}


SOURCE = '''\
"""What it is about."""

class Dough:
    """Flour and water."""
    flour: int = 1
    """In grams."""

def bake(dough, heat=200):
    return {"dough": dough, "heat": heat}
'''


def digest(text: str) -> str:
    return Module("bread", Path("bread.py"), text.encode()).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class Dough", "# A comment.\nclass Dough"),
        ('"""What it is about."""', ""),
        ("Flour and water.", "Water and flour."),
        ("In grams.", "In kilograms."),
        ("(dough, heat=200)", "(\n    dough,\n    heat = (200),\n)"),
        ('"dough"', "'dough'"),
    ],
)
def test_comments_layout_and_docstrings_do_not_count(old: str, new: str) -> None:
    assert digest(SOURCE.replace(old, new)) == digest(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("heat=200", "heat=220"),
        ("heat=200", "heat=None"),
        ("heat=200", "*heat"),
        ("flour: int = 1", "flour: int = True"),
        ("flour: int = 1", "flour: float = 1"),
        ('"dough": dough', "**dough"),
        ("    return", "    yield"),
    ],
)
def test_everything_else_counts(old: str, new: str) -> None:
    assert digest(SOURCE.replace(old, new)) != digest(SOURCE)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("a.cpp", True), ("a.h", True), ("pages/a.j2", True), ("a.txt", False), ("deep/a.h", False)],
)
def test_sources_in_other_languages_count_with_their_package(
    name: str, counts: bool, tmp_path: Path
) -> None:
    kitchen(tmp_path, "")
    package = tmp_path / "kitchen" / "__init__.py"
    before = Module("kitchen", package, b"").digest
    (tmp_path / "kitchen" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "kitchen" / name).write_text("int heat = 200;")
    assert (Module("kitchen", package, b"").digest != before) == counts


def test_a_function_without_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no source of tests\.pipelines\.graph\.test_code\.<lam"):
        code_digest([LAMBDA])


LAMBDA = lambda: None  # noqa: E731
