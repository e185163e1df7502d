"""The demo's photographs: Fashion-MNIST (Xiao et al., 2017, MIT licence), fetched once.

From Debian's package `dataset-fashion-mnist`, downloaded and unpacked without installing it (no
root needed), else through torchvision's downloader.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from convnextv2.data.collection import DataError

PACKAGE = "dataset-fashion-mnist"
FILES = tuple(
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)


def fetch(folder: Path, say: Callable[[str], None]) -> Path:
    """Return `folder` with the four files in it, fetching them if need be.

    Raises:
        DataError: When no way works; says which were tried and what to do instead.
    """
    if all((folder / name).exists() for name in FILES):
        return folder
    problems = []
    for where, attempt in (
        (f"Debian's package {PACKAGE}", _from_debian),
        ("torchvision's downloader", _from_torchvision),
    ):
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        say(f"fetching Fashion-MNIST from {where}")
        try:
            found = attempt(partial)
            folder.mkdir(exist_ok=True)
            for name in FILES:
                os.replace(found / name, folder / name)
            return folder
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            problems.append(f"  {where}: {_reason(error)}")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise DataError(
        "Fashion-MNIST cannot be fetched:\n"
        + "\n".join(problems)
        + "\nGive a folder of your own with one folder per class: convnextv2 demo --data DIR"
    )


def _from_debian(partial: Path) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise OSError("apt-get and dpkg are not on this machine")
    try:
        _quietly("apt-get", "download", PACKAGE, folder=partial)
    except subprocess.CalledProcessError:
        # A fresh image has no package lists, and only root may fetch them.
        if os.geteuid() != 0:
            raise
        _quietly("apt-get", "update", folder=partial)
        _quietly("apt-get", "download", PACKAGE, folder=partial)
    archive = next(partial.glob("*.deb"), None)
    if archive is None:
        raise OSError("apt-get download brought no file")
    _quietly("dpkg", "-x", str(archive.resolve()), "unpacked", folder=partial)
    found = partial / "unpacked/usr/share/datasets/fashion-mnist"
    if not all((found / name).exists() for name in FILES):
        raise OSError("the package has changed: its four files are not where they were")
    return found


def _from_torchvision(partial: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(partial), download=True)
    return partial / "FashionMNIST/raw"


def _quietly(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def _reason(error: Exception) -> str:
    """The last line of what went wrong, which is the one that says it."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = (text or "").strip().splitlines()
    return lines[-1] if lines else type(error).__name__
