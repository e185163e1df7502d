"""Whatever names a file will do: every public function takes text and `os.PathLike` for a path.

What is public is found, not listed: of a package its `__all__` or, if it has none, what its
modules and itself define; records (dataclasses) aside, which functions make. That the bodies take
text, too, mypy sees by the annotations; those that need nothing but a path are called as well.
"""

import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

import pytest

import convnextv2
from convnextv2 import PathLike

Function = Callable[..., Any]


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module, or a package with all below it, shows."""
    listed = getattr(module, "__all__", None)
    for name in listed if listed is not None else vars(module):
        value = getattr(module, name)
        here = getattr(value, "__module__", None) == module.__name__
        if not name.startswith("_") and (listed is not None or here):
            yield f"{module.__name__}.{name}", value
    if listed is None:
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            yield from public(import_module(f"{module.__name__}.{found.name}"))


@cache
def functions() -> dict[str, Function]:
    found: dict[str, Function] = {}
    for name, value in public(convnextv2):
        if inspect.isfunction(value):
            found[name] = value
        elif inspect.isclass(value) and not is_dataclass(value):
            methods = inspect.getmembers(value, inspect.isfunction)
            found |= {
                f"{name}.{method}": function
                for method, function in methods
                # Those it inherits from libraries are not ours.
                if function.__module__.startswith("convnextv2")
                and (not method.startswith("_") or method == "__init__")
            }
    return found


def parts(hint: Any) -> Iterator[Any]:
    """A type and all it is made of."""
    yield hint
    for part in typing.get_args(hint):
        yield from parts(part)


def parameters(function: Function) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    return {name: hint for name, hint in hints.items() if name != "return"}


def takes(hint: Any, kind: type) -> bool:
    return any(isinstance(part, type) and issubclass(part, kind) for part in parts(hint))


@pytest.mark.slow
def test_no_public_function_insists_on_a_path_of_pathlib() -> None:
    names = functions().keys()
    assert {"convnextv2.weights.read", "convnextv2.data.shards.manifest.read_manifest"} <= names
    assert "convnextv2.data.loading.loader.BetonLoader.__init__" in names
    insisting = [
        f"{name}({parameter})"
        for name, function in functions().items()
        for parameter, hint in parameters(function).items()
        if takes(hint, PurePath)
    ]
    assert insisting == []


def needs_a_path_only(function: Function) -> bool:
    required = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    hints = parameters(function)
    # A context manager does nothing until it is entered.
    at_once = not inspect.isgeneratorfunction(inspect.unwrap(function))
    return (
        at_once
        and len(required) == 1
        and set(typing.get_args(PathLike)) <= set(parts(hints.get(required[0])))
    )


class Named:
    """Names a file, and is neither text nor pathlib's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __fspath__(self) -> str:
        return self.name


@pytest.mark.slow
def test_a_path_may_be_text_or_anything_that_names_a_file(tmp_path: Path) -> None:
    """All say the same of a file that is not there."""
    called = {name: each for name, each in functions().items() if needs_a_path_only(each)}
    assert {
        "convnextv2.weights.inspect",
        "convnextv2.data.shards.manifest.read_manifest",
    } <= called.keys()
    gone = str(tmp_path / "gone")
    for name, function in called.items():
        said = set()
        for path in (Path(gone), gone, Named(gone)):
            with pytest.raises((ValueError, OSError)) as caught:
                function(path)
            said.add((caught.type, str(caught.value)))
        assert len(said) == 1, (name, said)
        assert "gone" in said.pop()[1]
