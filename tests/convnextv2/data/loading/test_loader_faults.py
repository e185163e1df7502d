"""What goes wrong while batches are served is heard, and leaving early leaves nothing behind."""

import gc
import itertools
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from convnextv2.data.order.global_order import Indices
from convnextv2.data.shards.manifest import read_manifest, write_manifest
from convnextv2.data.shards.mapped import open_shards
from tests.convnextv2.data.loading.loaders import (
    COUNT,
    EVERY,
    WHOLE,
    by_sample,
    loader_of,
    reading_threads,
    write_folders,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def damaged(root: Path, tmp_path: Path) -> tuple[Path, int]:
    """A folder whose sample number 30 has lost its middle, and that number."""
    manifest = read_manifest(root / "jpg")
    for shard in manifest.shards:
        (tmp_path / shard.name).write_bytes((root / "jpg" / shard.name).read_bytes())
    write_manifest(tmp_path, manifest)
    shards = open_shards(tmp_path, manifest)
    number = int(np.searchsorted(shards.table["first"], 30, side="right")) - 1
    inside = 30 - int(shards.table["first"][number])
    begin, end = (int(field["data_ptr"]) for field in shards.records(number)["f0"][inside:][:2])
    with shards.paths[number].open("r+b") as file:
        file.seek(begin + (end - begin) // 2)
        file.write(bytes((end - begin) // 2))
    return tmp_path, 30


def test_a_damaged_image_is_an_error_where_the_batches_are_taken(
    damaged: tuple[Path, int],
) -> None:
    folder, bad = damaged
    good = np.setdiff1d(EVERY, [bad])
    samples = np.concatenate([good[:8], [bad], good[8:40]]).astype(np.uint64)
    loader, served = loader_of(folder, view=WHOLE), []

    def read_all() -> None:
        for batch in loader.batches(samples):
            served.extend(batch.indices.tolist())

    with pytest.raises(RuntimeError, match=rf"\.beton, image \d+ \(sample {bad}\): damaged"):
        read_all()
    assert served == good[:8].tolist()
    assert reading_threads() == []
    assert len(by_sample(loader, good)) == COUNT - 1  # The loader goes on after it.


def test_what_is_wrong_with_the_order_is_an_error_too(root: Path) -> None:
    def order() -> object:
        yield EVERY[:4]
        raise LookupError("the order broke")

    with pytest.raises(RuntimeError, match="the order broke"):
        list(loader_of(root / "raw").batches(order()))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="there is no sample 72, only 72"):
        list(loader_of(root / "raw").batches(np.array([72], np.uint64)))
    assert reading_threads() == []


CUT = """
import os, sys
from pathlib import Path
from tests.convnextv2.data.loading.loaders import EVERY, WHOLE, loader_of

loader = loader_of(Path(sys.argv[1]), view=WHOLE)
images = int(loader.shards.records(0)["f0"]["data_ptr"][0])
os.truncate(loader.shards.paths[0], images)
try:
    list(loader.batches(EVERY))
except RuntimeError as error:
    print(error)
"""


def test_a_file_that_shrinks_under_the_reader_is_an_error(root: Path, tmp_path: Path) -> None:
    """As a disk that fails is: reading mapped memory would end the process (SIGBUS)."""
    shutil.copytree(root / "raw", tmp_path / "set")
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(tmp_path / "set")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    path = tmp_path / "set" / "train-00000-of-00003.beton"
    assert done.stdout.startswith(f"{path}, image ")
    assert "unreadable" in done.stdout


def test_leaving_early_ends_the_reading_thread(root: Path) -> None:
    loader = loader_of(root / "raw")
    for taken in range(3):
        asked: list[int] = []

        def endless(asked: list[int] = asked) -> Iterator[Indices]:
            for number in itertools.count():
                asked.append(number)
                yield EVERY[:4]

        batches = loader.batches(endless())
        for _ in range(taken):
            next(batches)
        batches.close()
        assert reading_threads() == []
        assert len(asked) < 20

    def train() -> None:
        for _ in loader.batches(np.tile(EVERY, 20)):
            assert len(reading_threads()) == 1
            raise FloatingPointError("loss is nan")

    with pytest.raises(FloatingPointError):
        train()
    assert reading_threads() == []


def test_abandoned_epochs_leave_no_buffers(root: Path) -> None:
    loader = loader_of(root / "raw")
    threads = []
    for _ in range(5):
        batches = loader.batches(np.tile(EVERY, 20))
        next(batches)
        threads.append(weakref.ref(reading_threads()[0]))
        del batches  # Never closed: a loop that was left.
        gc.collect()
    # All buffers of an epoch belong to its thread.
    assert [thread() for thread in threads] == [None] * 5


def test_loaders_may_read_at_once(root: Path) -> None:
    loaders = [loader_of(root / name, num_workers=2) for name in ("raw", "jpg", "raw")]
    expected = [by_sample(loader, EVERY, epoch) for epoch, loader in enumerate(loaders)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            assert list(pool.map(by_sample, loaders, [EVERY] * 3, range(3))) == expected


def test_a_batch_has_to_be_prepared_in_advance(root: Path) -> None:
    with pytest.raises(ValueError, match="0 batches ahead; at least one"):
        loader_of(root / "raw", batches_ahead=0)


def test_a_second_epoch_at_once_is_refused(root: Path) -> None:
    loader = loader_of(root / "raw")
    first = loader.batches(EVERY)
    next(first)
    with pytest.raises(RuntimeError, match="another epoch of this loader is still open"):
        next(loader.batches(EVERY, epoch=1))
    first.close()
    assert next(loader.batches(EVERY, epoch=1)).epoch == 1


def test_pytorchs_threads_stay_as_they_were(root: Path) -> None:
    for threads in (3, 2):
        torch.set_num_threads(threads)
        loader = loader_of(root / "raw")
        assert torch.get_num_threads() == threads
        batches = loader.batches(EVERY)
        next(batches)
        assert torch.get_num_threads() == threads
        # PyTorch hands its number on to threads that start later.
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == threads
        batches.close()


def test_importing_leaves_pytorchs_threads_as_they_were() -> None:
    code = (
        "import torch; torch.set_num_threads(3); import convnextv2.data.loading.loader; "
        "print(torch.get_num_threads())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == ["3"]
