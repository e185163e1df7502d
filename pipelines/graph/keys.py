"""What a stage's key is made of: hashes of settings and of source code."""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pipelines.graph.closure import Sources
from pipelines.graph.exempt import EXEMPT

PACKAGES = frozenset({"cluster", "convnextv2", "pipelines"})


def digest_of(content: object) -> str:
    """sha256 of the canonical JSON of what JSON can hold."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest(functions: Iterable[Callable[..., object]], sources: Sources | None = None) -> str:
    """One digest for the source of all modules that decide what functions compute.

    Those are the modules in the functions' closure (`pipelines.graph.closure`), without what is in
    `EXEMPT`; their comments, layout and docstrings do not count. Sources are read once a process.

    Raises:
        ValueError: When the source of a function cannot be found.
    """
    names = [name_of(function) for function in functions]
    if sources is None:
        sources = installed_sources(PACKAGES | {name.partition(".")[0] for name in names})
    for name in names:
        if not sources.defines(name):
            raise ValueError(f"there is no source of {name}; give a function that a module defines")
    modules = sources.closure(names, EXEMPT)
    return digest_of({name: module.digest for name, module in modules.items()})


def name_of(function: Callable[..., object]) -> str:
    """The definition a.b.c of a module that a function, method or class is, or is inside of."""
    return f"{function.__module__}.{function.__qualname__.partition('.')[0]}"


@cache
def installed_sources(packages: frozenset[str]) -> Sources:
    """The sources of the packages that would be imported, from a checkout or a wheel."""
    specs = {name: find_spec(name) for name in packages - {"__main__"}}
    return Sources(
        {
            name: Path(folder)
            for name, spec in specs.items()
            if spec is not None
            for folder in spec.submodule_search_locations or ()
        }
    )
