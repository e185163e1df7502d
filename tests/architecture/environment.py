"""An installation of a few extras, made of the whole one: other packages are not found."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

# Every finder of modules is asked through one that does not know the absent ones.
LACKING = """
import json, os, sys
absent = set(json.loads(os.environ["ABSENT"]))
class Finder:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in absent:
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Finder(finder) for finder in sys.meta_path if hasattr(finder, "find_spec")]
"""


def run(code: str, *extras: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where `pip install convnextv2[extras]` has been run, and nothing else."""
    environment = os.environ | {"ABSENT": json.dumps(sorted(absent(extras)))}
    command = [sys.executable, "-c", LACKING + code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@cache
def packages_of_modules() -> dict[str, list[str]]:
    """The packages of every top-level module, by a new process: Ray, once imported, puts packages
    of its own on the path.
    """
    code = "import json, importlib.metadata as m; print(json.dumps(m.packages_distributions()))"
    found = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    return {str(module): list(packages) for module, packages in found.items()}


@cache
def absent(extras: tuple[str, ...]) -> set[str]:
    """Top-level modules of all packages that these extras do not bring."""
    brought = set(closure(Requirement(f"convnextv2[{','.join(extras)}]")))
    return {
        module
        for module, packages in packages_of_modules().items()
        if not brought & {canonicalize_name(package) for package in packages}
    }


def closure(*requirements: Requirement) -> Iterator[str]:
    """Names of the packages that pip would install for these, by what the installed ones ask for.

    Those that are not installed here are left out: a platform's own, such as CUDA's.
    """
    seen: set[tuple[str, str]] = set()
    left = list(requirements)
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                left += [
                    r for r in needs(name) if not r.marker or r.marker.evaluate({"extra": extra})
                ]
        yield name


@cache
def needs(name: str) -> list[Requirement]:
    """What a package asks for; an extra's requirements carry a marker that names it."""
    if name == "convnextv2":
        # As it stands here: the installed description may be of an older list.
        base = [Requirement(line) for line in PROJECT["dependencies"]]
        return base + [
            Requirement(f"{line} ; extra == '{extra}'")
            for extra, lines in EXTRAS.items()
            for line in lines
        ]
    try:
        return [Requirement(line) for line in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return []


def brought_by(extra: str) -> set[str]:
    """The packages that `pyproject.toml` names for an extra, those of other extras in it, too."""
    names: set[str] = set()
    for line in EXTRAS[extra]:
        if found := re.fullmatch(r"convnextv2\[(.+)\]", line):
            names |= set().union(*(brought_by(other) for other in found[1].split(",")))
        else:
            names.add(canonicalize_name(Requirement(line).name))
    return names
