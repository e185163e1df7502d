"""What produced a result: code version and library versions."""

import os
import subprocess
from functools import cache
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path

LIBRARIES = ("torch", "deepspeed", "ray", "ffcv", "spconv", "mlflow", "numpy", "numba")
VARIANTS = {"spconv": ("spconv-cu126",)}


def git_commit() -> str:
    """Commit of the checkout this code runs from, "+changes" if it was edited.

    Images carry no git: they name theirs in CONVNEXTV2_COMMIT. "" when nobody knows.
    """
    root = Path(__file__).resolve().parents[2]
    try:
        commit = _git(root, "rev-parse", "HEAD")
        edited = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("CONVNEXTV2_COMMIT", "")
    return commit + ("+changes" if edited else "")


def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide results."""
    return {name: version(name) for name in ("convnextv2", *LIBRARIES)}


def version(name: str = "convnextv2") -> str:
    """The installed version of a distribution, or "not installed"."""
    for variant in (name, *VARIANTS.get(name, ())):
        try:
            return metadata.version(variant)
        except PackageNotFoundError:
            continue
    return "not installed"


@cache
def provenance() -> dict[str, str]:
    """Tags for MLflow."""
    return {
        "git.commit": git_commit(),
        **{f"version.{name}": text for name, text in versions().items()},
    }


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
