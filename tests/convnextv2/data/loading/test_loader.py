"""Loading: real shards, the same bytes whatever the batches."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from convnextv2.data.augment import Augment, RandAugment, RandomErasing
from convnextv2.data.loading.views import CenterView
from convnextv2.data.order.global_order import GlobalOrder
from convnextv2.data.shards.local_cache import LocalCache
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import open_shards
from convnextv2.tasks.batch import Batch
from tests.convnextv2.data.fixtures.ffcvs_loader import served_by_ffcv
from tests.convnextv2.data.loading.loaders import (
    COUNT,
    EVERY,
    HEIGHT,
    RECIPE,
    SAME,
    SEED,
    SOURCE,
    WHOLE,
    by_sample,
    bytes_of,
    loader_of,
    write_folders,
)

WORLDS = (1, 2, 3, 5, 8)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("sets"))


def pictures_of(folder: Path) -> list[int]:
    """Which picture each sample of a folder of raw shards is."""
    shards = open_shards(folder, read_manifest(folder))
    images = {SOURCE.image(n).tobytes(): n for n in range(COUNT)}
    found = []
    for number in range(len(shards.table)):
        for field in shards.records(number)["f0"]:
            begin = int(field["data_ptr"])
            size = 3 * int(field["height"]) * int(field["width"])
            found.append(images[shards.read(number, begin, begin + size)])
    return found


def test_raw_images_come_back_as_they_were(root: Path) -> None:
    pictures = pictures_of(root / "raw")
    same = np.array([n for n in range(COUNT) if pictures[n] < SAME], np.uint64)[::-1]
    seen = []
    for batch in loader_of(root / "raw", view=WHOLE).batches(same, epoch=6):
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.epoch == 6
        # (B, 3, H, W) in channels_last, without a copy.
        nchw = batch.images.permute(0, 3, 1, 2)
        assert nchw.is_contiguous(memory_format=torch.channels_last)
        for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
            picture = pictures[int(index)]
            np.testing.assert_array_equal(image.numpy(), SOURCE.image(picture))
            assert label == picture % 3
            seen.append(int(index))
    assert seen == same.tolist()


def test_ffcvs_own_loader_serves_the_same_pixels(root: Path) -> None:
    shards = open_shards(root / "one", read_manifest(root / "one"))
    pictures = pictures_of(root / "one")
    same = np.array([n for n in range(COUNT) if pictures[n] < SAME], np.uint64)
    images, labels = served_by_ffcv(shards.paths[0], same.astype(np.int64), side=HEIGHT)
    view = CenterView(size=(HEIGHT, HEIGHT), crop=1.0, interpolation="area")
    (batch,) = loader_of(root / "one", view=view, batch_size=len(same)).batches(same)
    assert labels.tolist() == batch.labels.tolist()
    np.testing.assert_array_equal(images, batch.images.numpy())


def test_the_last_batch_may_be_short_and_none_is_none(root: Path) -> None:
    loader = loader_of(root / "raw")
    sizes = [len(batch.labels) for batch in loader.batches(EVERY[:10])]
    assert sizes == [4, 4, 2]
    assert list(loader.batches(EVERY[:0])) == []


@pytest.mark.parametrize("augment", [None, RECIPE], ids=["view", "recipe"])
def test_nothing_but_seed_epoch_and_sample_changes_an_image(
    root: Path, augment: Augment | None
) -> None:
    expected = by_sample(loader_of(root / "raw", augment=augment), EVERY, epoch=1)
    assert len(set(expected.values())) == COUNT
    changed = loader_of(root / "raw", augment=augment, batch_size=6, num_workers=2, batches_ahead=1)
    assert by_sample(changed, EVERY, epoch=1) == expected
    pairs = np.random.default_rng(0).permutation(EVERY.reshape(-1, 2)).reshape(-1)
    assert by_sample(changed, pairs, epoch=1) == expected
    assert by_sample(changed, EVERY, epoch=2) != expected
    assert by_sample(loader_of(root / "raw", augment=augment, seed=1), EVERY, 1) != expected


@pytest.mark.parametrize("world_size", WORLDS)
def test_every_sample_once_and_the_same_global_batches(root: Path, world_size: int) -> None:
    order = GlobalOrder(COUNT, 24, SEED, drop_last=False)
    loaders = [loader_of(root / "raw") for _ in range(world_size)]

    def global_batches(ranks: int) -> list[dict[int, bytes]]:
        workers = [
            list(order.worker_batches(2, rank=rank, world_size=ranks)) for rank in range(ranks)
        ]
        return [
            {
                index: data
                for loader, part in zip(loaders, parts, strict=False)
                for index, data in by_sample(loader, part, 2).items()
            }
            for parts in zip(*workers, strict=True)
        ]

    batches = global_batches(world_size)
    assert batches == global_batches(1)
    assert sorted(index for batch in batches for index in batch) == EVERY.tolist()


@pytest.mark.parametrize("world_size", WORLDS)
def test_resuming_at_every_position_on_any_number_of_workers(root: Path, world_size: int) -> None:
    order = GlobalOrder(COUNT, 12, SEED)
    augment = Augment(rand_augment=RandAugment(), random_erasing=RandomErasing(0.5))
    loader = loader_of(root / "jpg", augment=augment, batch_size=12)

    def served(start: int, ranks: int) -> list[dict[int, bytes]]:
        """The global batches, put together again."""
        whole: list[dict[int, bytes]] = [{} for _ in range(start, order.batches_per_epoch)]
        for rank in range(ranks):
            batches = order.worker_batches(4, rank=rank, world_size=ranks, start=start)
            for seen, batch in zip(whole, loader.batches(batches, epoch=4), strict=True):
                seen |= dict(zip(batch.indices.tolist(), bytes_of(batch), strict=True))
        return whole

    straight = served(0, 1)
    assert [len(seen) for seen in straight] == [12] * 6
    for consumed in range(0, order.samples_per_epoch, 12):
        _, start = order.locate(consumed)
        assert served(start, world_size) == straight[start:]


def test_resuming_at_every_position_is_the_straight_run_byte_for_byte(root: Path) -> None:
    order = GlobalOrder(COUNT, 12, SEED)
    loader = loader_of(root / "jpg", augment=RECIPE, batch_size=6)

    def served(start: int, rank: int, world_size: int) -> list[list[bytes]]:
        batches = order.worker_batches(4, rank=rank, world_size=world_size, start=start)
        return [bytes_of(batch) for batch in loader.batches(batches, epoch=4)]

    straight = served(0, 0, 1)
    for consumed in range(0, order.samples_per_epoch, 12):
        _, start = order.locate(consumed)
        assert served(start, 0, 1) == straight[2 * start :]
        # And on two workers: the same images of every global batch.
        halves = [served(start, rank, 2) for rank in (0, 1)]
        for number, parts in enumerate(zip(*halves, strict=True)):
            whole = straight[2 * (start + number)] + straight[2 * (start + number) + 1]
            assert sorted(data for part in parts for data in part) == sorted(whole)


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(root: Path) -> None:
    loader = loader_of(root / "jpg", batches_ahead=1)
    for number, batch in enumerate(loader.batches(np.tile(EVERY[:8], 6))):
        before = batch.images.clone()
        thread, deadline = loader._thread, time.monotonic() + 30
        assert thread is not None
        while number < 4 and not thread.output_queue.full():  # It runs as far ahead as it may.
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert torch.equal(batch.images, before)


def test_shards_are_read_from_the_cache_as_they_arrive(root: Path, tmp_path: Path) -> None:
    expected = by_sample(loader_of(root / "raw"), EVERY)
    cache = LocalCache(root / "raw", tmp_path)
    loader = loader_of(root / "raw", cache=cache, batches_ahead=1)
    served: dict[int, bytes] = {}
    moved = []
    arrived_since = 0
    for batch in loader.batches(EVERY for _ in range(1000)):
        served |= dict(zip(batch.indices.tolist(), bytes_of(batch), strict=True))
        moved.append(sum(path.parent == tmp_path for path in loader.shards.paths))
        if len(moved) == 10:
            cache.start()
        if len(moved) > 10:
            time.sleep(0.02)
        arrived_since += moved[-1] == 3
        if arrived_since * len(batch.indices) > 2 * len(EVERY):
            break  # All were served from there at least once.
    assert served == expected
    assert moved[0] == 0
    assert moved[-1] == 3
    cache.close()


def test_mixing_needs_pairs(root: Path) -> None:
    with pytest.raises(ValueError, match="batch size 3 is odd"):
        loader_of(root / "raw", augment=RECIPE, batch_size=3)
    with pytest.raises(RuntimeError, match="mixed in pairs, this batch has 3"):
        list(loader_of(root / "raw", augment=RECIPE).batches(EVERY[:7]))
    (batch,) = loader_of(root / "raw", augment=RECIPE).batches(EVERY[:4])
    assert batch.coefficients is not None
    assert batch.partner_labels is not None
    assert batch.partner_labels.tolist() == [batch.labels[row].item() for row in (1, 0, 3, 2)]


def test_a_second_process_compiles_nothing(root: Path) -> None:
    by_sample(loader_of(root / "raw"), EVERY[:4])
    script = (
        "import sys; from pathlib import Path; from tests.convnextv2.data.loading.loaders import *;"
        "by_sample(loader_of(Path(sys.argv[1])), EVERY[:4]);"
        "from convnextv2.data.loading.views import serve_views as kernel;"
        "print(sum(kernel.stats.cache_misses.values()), sum(kernel.stats.cache_hits.values()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root / "raw")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["0", "1"]


def test_a_batch_moves_with_its_labels_and_keeps_its_indices() -> None:
    batch = Batch(
        torch.zeros(2, 3, 3, 3), torch.tensor([1, 0]), torch.tensor([8, 9]), 5, torch.ones(2)
    )
    moved = batch.to(torch.device("meta"))
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert moved.coefficients is not None
    assert moved.coefficients.device.type == "meta"
    assert moved.indices.tolist() == [8, 9]
    assert moved.epoch == 5
