"""Writing: whole and verified, or not there at all, whatever happens on the way."""

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ffcv.reader import Reader
from ffcv.types import HeaderType

from convnextv2.data import write
from convnextv2.data.collection import DataError
from convnextv2.data.write import (
    BetonManifest,
    WriteSettings,
    manifest_path,
    read_manifest,
    write_beton,
)
from tests.convnextv2 import pictures
from tests.convnextv2.pictures import FatalPictures, Pictures

SHAPES = tuple((20 + n % 3, 30 - n % 4) for n in range(25))
TWO_AT_A_TIME = WriteSettings(mode="raw", num_workers=2)

pytestmark = pytest.mark.timeout(120)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BetonManifest, list[int]]:
    """A file with two unreadable images of at most two, its manifest and the progress reports."""
    path = tmp_path_factory.mktemp("written") / "not" / "yet" / "there" / "train.beton"
    settings = WriteSettings(mode="raw", num_workers=2, max_unreadable=2)
    seen: list[int] = []
    source = FatalPictures(SHAPES, unreadable=(3, 11), act=pictures.refuse_named_memory)
    manifest = write_beton(source, path, settings, seen.append)
    return path, manifest, seen


def test_the_manifest_describes_the_file(finished: tuple[Path, BetonManifest, list[int]]) -> None:
    path, manifest, _ = finished
    data = path.read_bytes()
    assert manifest.sha256 == hashlib.sha256(data).hexdigest()
    assert manifest.bytes == len(data)
    assert manifest.samples == 25
    assert manifest.classes == ["cat", "dog", "eel"]
    assert read_manifest(path) == manifest
    assert left_in(path.parent) == ["train.beton", "train.beton.json"]


def test_unreadable_images_are_named_and_left_out(
    finished: tuple[Path, BetonManifest, list[int]],
) -> None:
    _, manifest, _ = finished
    assert manifest.skipped == [
        (3, "picture-3: made up to be bad"),
        (11, "picture-11: made up to be bad"),
    ]
    assert manifest.usable.tolist() == [n for n in range(25) if n not in (3, 11)]
    assert manifest.usable.dtype == np.uint64


def test_labels_and_sizes_are_those_of_the_source(
    finished: tuple[Path, BetonManifest, list[int]],
) -> None:
    path, manifest, _ = finished
    reader = Reader(str(path))
    images, labels = reader.metadata["f0"], reader.metadata["f1"].reshape(-1)
    for sample in manifest.usable.astype(int):
        assert (images["height"][sample], images["width"][sample]) == SHAPES[sample]
        assert labels[sample] == sample % 3
    assert (labels[[3, 11]] == -1).all()


def test_progress_grows_to_the_end(finished: tuple[Path, BetonManifest, list[int]]) -> None:
    _, _, seen = finished
    assert seen == sorted(seen)
    assert seen[-1] == 25


def test_too_many_unreadable_images_are_an_error_that_names_them(tmp_path: Path) -> None:
    source = Pictures(SHAPES, unreadable=(3, 11, 20))
    settings = WriteSettings(num_workers=1, max_unreadable=2)
    with pytest.raises(DataError) as caught:
        write_beton(source, tmp_path / "train.beton", settings)
    message = str(caught.value)
    assert "3 of 25 images cannot be read, more than data.write.max_unreadable = 2" in message
    for bad in (3, 11, 20):
        assert f"picture-{bad}: made up to be bad" in message
    assert left_in(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (pictures.kill_worker, r"a writer process was ended by SIGKILL \(out of memory\?\)"),
        (pictures.kill_worker_at_the_counter, "a writer process was ended by SIGKILL"),
        (pictures.kill_writer, "exit code -9"),
        (pictures.stumble, "RuntimeError: the decoder broke"),
    ],
)
def test_a_process_that_dies_is_an_error_and_leaves_nothing(
    tmp_path: Path, act: Callable[[], object], reason: str
) -> None:
    destination = tmp_path / "train.beton"
    source = FatalPictures(SHAPES, fatal=7, act=act)
    with pytest.raises(DataError, match=rf"writing .*/train\.beton failed: {reason}"):
        write_beton(source, destination, TWO_AT_A_TIME)
    assert left_in(tmp_path) == []
    assert writers_of(destination) == []


class Stop(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


@pytest.mark.parametrize("done", [0, 7], ids=["while it starts", "in the middle"])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, done: int) -> None:
    destination = tmp_path / "train.beton"

    def stop(seen: int) -> None:
        if seen >= done:
            raise Stop

    with pytest.raises(Stop):
        write_beton(
            FatalPictures(SHAPES, fatal=6, act=pictures.hang), destination, TWO_AT_A_TIME, stop
        )
    assert left_in(tmp_path) == []
    assert multiprocessing.active_children() == []
    assert writers_of(destination) == []


def writers_of(destination: Path) -> list[int]:
    """Processes that hold the file or its log open, once the dying have had a moment."""
    for _ in range(50):
        holders = [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if holds(pid, destination)
        ]
        if not holders:
            break
        time.sleep(0.1)
    return holders


def holds(pid: int, destination: Path) -> bool:
    try:
        opened = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:  # It ended meanwhile.
        return False
    return any(path.startswith(f"{destination.parent}/.{destination.name}") for path in opened)


def test_a_disk_that_is_clearly_too_small_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=40_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(write, "run_writer", lambda *_: pytest.fail("writing was begun"))
    with pytest.raises(DataError, match=r"disk full: .* has 0\.0 GB free.*max_resolution"):
        write_beton(Pictures(((100, 100),) * 4), tmp_path / "train.beton", TWO_AT_A_TIME)
    assert left_in(tmp_path) == []


def test_the_forecast_knows_the_resolution_and_the_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def begin(*_: object) -> None:
        raise Begun

    usage = shutil.disk_usage(tmp_path)._replace(free=40_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(write, "run_writer", begin)
    source = Pictures(((100, 100),) * 4)  # 120,000 bytes raw
    for settings in (WriteSettings(mode="jpg"), WriteSettings(mode="raw", max_resolution=50)):
        with pytest.raises(Begun):
            write_beton(source, tmp_path / "train.beton", settings)


@pytest.fixture
def small_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Files may not grow past so many bytes: the kernel cuts one write short, refuses the next."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (request.param, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize(
    "small_disk",
    # Three pages of 8 MiB of header and pictures, and a table of 30 entries.
    [pytest.param(12 * 2**20, id="in a page"), pytest.param(24 * 2**20 + 100, id="in the table")],
    indirect=True,
)
def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    source = Pictures(((400, 400),) * 30)
    with pytest.raises(DataError, match=r"File too large|took only part of the file"):
        write_beton(source, tmp_path / "train.beton", WriteSettings(mode="raw"))
    assert left_in(tmp_path) == []


def test_a_file_cut_short_in_silence_is_noticed(
    tmp_path: Path, finished: tuple[Path, BetonManifest, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished[0].read_bytes()
    header = np.frombuffer(whole[: HeaderType.itemsize], HeaderType).copy()
    end = int(header["alloc_table_ptr"][0])
    header["alloc_table_ptr"] = end - 1000

    def writes(data: bytes) -> Callable[..., list[tuple[int, str]]]:
        def run_writer(source: object, partial: Path, *_: object) -> list[tuple[int, str]]:
            partial.write_bytes(data)
            return []

        return run_writer

    for data in (
        whole[:-24],  # The last sample's entry in the table is missing.
        whole[:end],  # All entries are.
        # The last page is cut, and the table follows there.
        header.tobytes() + whole[HeaderType.itemsize : end - 1000] + whole[end:],
    ):
        monkeypatch.setattr(write, "run_writer", writes(data))
        with pytest.raises(DataError, match="took only part of the file"):
            write_beton(Pictures(SHAPES), tmp_path / "train.beton", TWO_AT_A_TIME)
        assert left_in(tmp_path) == []


def test_a_file_without_its_manifest_was_never_finished(tmp_path: Path) -> None:
    beton = tmp_path / "train.beton"
    beton.write_bytes(b"half")
    with pytest.raises(DataError, match=r"train\.beton\.json: it was not written to the end"):
        read_manifest(beton)


@pytest.fixture
def rewritten(tmp_path: Path, finished: tuple[Path, BetonManifest, list[int]]) -> Path:
    """A copy of the finished file, to write again."""
    beton = tmp_path / "train.beton"
    shutil.copy(finished[0], beton)
    shutil.copy(manifest_path(finished[0]), manifest_path(beton))
    return beton


def test_writing_again_replaces_file_and_manifest(rewritten: Path) -> None:
    before = read_manifest(rewritten)
    after = write_beton(Pictures(SHAPES[:6]), rewritten, TWO_AT_A_TIME)
    assert (before.samples, after.samples) == (25, 6)
    assert read_manifest(rewritten) == after
    assert after.sha256 == hashlib.sha256(rewritten.read_bytes()).hexdigest()
    assert left_in(rewritten.parent) == ["train.beton", "train.beton.json"]


def test_when_writing_again_fails_the_file_that_was_there_stays_good(
    rewritten: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: object, partial: Path, *_: object) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = read_manifest(rewritten)
    monkeypatch.setattr(write, "run_writer", fail)
    with pytest.raises(DataError, match=r"writing .*train\.beton failed: .*No space left"):
        write_beton(Pictures(SHAPES), rewritten, TWO_AT_A_TIME)
    assert read_manifest(rewritten) == before
    assert hashlib.sha256(rewritten.read_bytes()).hexdigest() == before.sha256
    assert left_in(rewritten.parent) == ["train.beton", "train.beton.json"]


def test_a_new_file_never_stands_beside_the_manifest_of_the_old(
    rewritten: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = rewritten.read_bytes()

    def run_writer(source: object, partial: Path, *_: object) -> list[tuple[int, str]]:
        partial.write_bytes(new)
        return []

    def power_loss(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(write, "run_writer", run_writer)
    monkeypatch.setattr(write, "_write_json", power_loss)
    with pytest.raises(Stop):
        write_beton(Pictures(SHAPES), rewritten, TWO_AT_A_TIME)
    with pytest.raises(DataError, match="not written to the end"):
        read_manifest(rewritten)


def test_the_manifest_is_plain_json(finished: tuple[Path, BetonManifest, list[int]]) -> None:
    path, manifest, _ = finished
    content = json.loads(manifest_path(path).read_text())
    assert content["samples"] == 25
    assert content["sha256"] == manifest.sha256
    assert content["skipped"][0] == [3, "picture-3: made up to be bad"]
