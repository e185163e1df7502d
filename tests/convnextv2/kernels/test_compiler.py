"""C++ compiled once: what a build depends on, and that it is whole or not there."""

import ctypes
import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convnextv2.data import decoding
from convnextv2.kernels.compiler import built, cache_folder

CODE = '#include "number.h"\nextern "C" int number() { return NUMBER; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = [tmp_path / "number.cpp", tmp_path / "number.h"]
    for path, text in zip(made, (CODE, "#define NUMBER 7\n"), strict=True):
        path.write_text(text)
    return made


def number(library: Path) -> int:
    found: int = ctypes.CDLL(str(library)).number()
    return found


def kept() -> list[Path]:
    return sorted(cache_folder().iterdir())


def test_what_is_built_once_is_used_again(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built("number", sources)
    assert number(first) == 7
    # A compiler that knows its version, and nothing else.
    lazy = tmp_path / "g++"
    lazy.write_text('#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\nexit 1\n')
    lazy.chmod(0o755)
    monkeypatch.setenv("CXX", str(lazy))
    assert built("number", sources) == first
    assert kept() == [first]


def test_sources_headers_and_flags_make_another_build(sources: list[Path]) -> None:
    found = [built("number", sources), built("number", sources, ["-DOTHER"])]
    sources[1].write_text("#define NUMBER 8\n")
    found.append(built("number", sources))
    assert [number(path) for path in found] == [7, 7, 8]
    assert kept() == sorted(set(found))
    assert len(set(found)) == 3


def test_builders_may_race(sources: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: built("number", sources), range(4)))
    assert kept() == [found[0]]
    assert set(found) == {found[0]}
    assert number(found[0]) == 7


def test_what_the_compiler_says_is_told_and_nothing_stays(sources: list[Path]) -> None:
    sources[0].write_text("this is no C++\n")
    with pytest.raises(subprocess.CalledProcessError) as error:
        built("number", sources)
    assert "this is no C++" in error.value.stderr
    assert kept() == []


def test_without_a_compiler_it_is_said_what_to_install(
    sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(OSError, match=r"install g\+\+ or set CXX"):
        built("number", sources)
    with pytest.raises(RuntimeError, match="libjpeg-turbo with its headers"):
        decoding.library.__wrapped__()


def test_code_is_kept_where_nobody_else_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stat.filemode(cache_folder().stat().st_mode) == "drwx------"
    (tmp_path / "convnextv2").chmod(0o777)
    assert stat.filemode(cache_folder().stat().st_mode) == "drwxr-xr-x"
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match=r"another user owns it.*set XDG_CACHE_HOME"):
        cache_folder()
