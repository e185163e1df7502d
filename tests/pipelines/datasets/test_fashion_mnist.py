"""Fetching the photographs, with apt-get, dpkg and torchvision played by the test."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from convnextv2.data.collection import DataError
from pipelines.datasets import fashion_mnist
from pipelines.datasets.fashion_mnist import FILES, fetch

Patch = pytest.MonkeyPatch
Command = Callable[[str, str], None]
INSIDE = "usr/share/datasets/fashion-mnist"
DOWNLOADS = 'case "$1" in download) echo > dataset-fashion-mnist_1_all.deb ;; esac'
UNPACKS = f'mkdir -p "$3/{INSIDE}" && cd "$3/{INSIDE}" && touch {" ".join(FILES)}'
FAILS = "echo first line >&2; echo E: no such package >&2; exit 100"


@pytest.fixture(autouse=True)
def command(tmp_path: Path, monkeypatch: Patch) -> Command:
    """Puts a script before the machine's own commands; `calls` lists what was run."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")

    def write(name: str, script: str) -> None:
        path = bin_dir / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n{script}\n')
        path.chmod(0o755)

    write("apt-get", FAILS)
    write("dpkg", FAILS)
    return write


@pytest.fixture(autouse=True)
def torchvision(tmp_path: Path, monkeypatch: Patch) -> ModuleType:
    """A torchvision whose server does not answer, and `FashionMNIST` to be replaced."""

    def unreachable(root: str, *, download: bool) -> None:
        with (tmp_path / "calls").open("a") as calls:
            calls.write("torchvision\n")
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nno route to host")

    module = ModuleType("torchvision.datasets")
    module.FashionMNIST = unreachable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    return module


def downloads(root: str, *, download: bool) -> None:
    raw = Path(root) / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).touch()


def calls(tmp_path: Path) -> list[str]:
    """The commands run so far, without their last arguments."""
    path = tmp_path / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [" ".join(line.split()[:2]) for line in lines]


def assert_fetched(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert list(folder.parent.iterdir()) == [folder], "nothing else stays behind"


def test_debians_package_is_unpacked_not_installed(tmp_path: Path, command: Command) -> None:
    command("apt-get", DOWNLOADS)
    command("dpkg", UNPACKS)
    said: list[str] = []
    folder = tmp_path / "data" / "fashion"
    assert fetch(folder, said.append) == folder
    assert_fetched(folder)
    assert calls(tmp_path) == ["apt-get download", "dpkg -x"]
    assert said == ["fetching Fashion-MNIST from Debian's package dataset-fashion-mnist"]


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).touch()
    assert fetch(tmp_path, print) == tmp_path
    assert calls(tmp_path) == []


def test_half_a_folder_is_fetched_anew(tmp_path: Path, command: Command) -> None:
    command("apt-get", DOWNLOADS)
    command("dpkg", UNPACKS)
    folder = tmp_path / "data" / "fashion"
    folder.mkdir(parents=True)
    (folder / FILES[0]).write_text("old")
    (folder.parent / ".fashion.partial").mkdir()
    fetch(folder, print)
    assert_fetched(folder)
    assert (folder / FILES[0]).read_text() == ""


@pytest.mark.parametrize("root", [True, False])
def test_package_lists_are_updated_by_root_only(
    root: bool, tmp_path: Path, command: Command, torchvision: ModuleType, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    lists = tmp_path / "lists"
    command(
        "apt-get",
        f'[ "$1" = update ] && exec touch {lists}\n[ -e {lists} ] || exit 100\n{DOWNLOADS}',
    )
    command("dpkg", UNPACKS)
    torchvision.FashionMNIST = downloads  # type: ignore[attr-defined]
    folder = tmp_path / "data" / "fashion"
    fetch(folder, print)
    assert_fetched(folder)
    if root:
        update = ["apt-get download", "apt-get update", "apt-get download", "dpkg -x"]
        assert calls(tmp_path) == update
    else:
        assert calls(tmp_path) == ["apt-get download"]


@pytest.mark.parametrize(
    ("apt_get", "dpkg"),
    [
        (FAILS, FAILS),
        (DOWNLOADS, FAILS),
        (DOWNLOADS, f'mkdir -p "$3/{INSIDE}/elsewhere"'),
        ("exit 0", UNPACKS),
    ],
)
def test_else_torchvision_downloads(
    apt_get: str, dpkg: str, tmp_path: Path, command: Command, torchvision: ModuleType
) -> None:
    command("apt-get", apt_get)
    command("dpkg", dpkg)
    torchvision.FashionMNIST = downloads  # type: ignore[attr-defined]
    folder = tmp_path / "data" / "fashion"
    said: list[str] = []
    fetch(folder, said.append)
    assert_fetched(folder)
    assert said[-1] == "fetching Fashion-MNIST from torchvision's downloader"


def test_when_nothing_works_both_reasons_and_the_way_out_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "fashion"
    with pytest.raises(DataError) as info:
        fetch(folder, print)
    assert str(info.value).splitlines() == [
        "Fashion-MNIST cannot be fetched:",
        "  Debian's package dataset-fashion-mnist: E: no such package",
        "  torchvision's downloader: no route to host",
        "Give a folder of your own with one folder per class: convnextv2 demo --data DIR",
    ]
    assert list(folder.parent.iterdir()) == []


def test_a_machine_without_apt_says_so(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="apt-get and dpkg are not on this machine"):
        fetch(tmp_path / "fashion", print)
    assert calls(tmp_path) == ["torchvision"]


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, monkeypatch: Patch) -> None:
    def interrupted(partial: Path) -> Path:
        (partial / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(fashion_mnist, "_from_debian", interrupted)
    folder = tmp_path / "data" / "fashion"
    with pytest.raises(KeyboardInterrupt):
        fetch(folder, print)
    assert list(folder.parent.iterdir()) == []
