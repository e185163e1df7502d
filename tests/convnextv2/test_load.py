"""Loading: real .beton files, the same pixels whatever the batches, and failures that are heard."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ffcv.reader import Reader

from convnextv2.data.load import Batch, BetonLoader, _EpochThread
from convnextv2.data.order import GlobalOrder, Indices
from convnextv2.data.views import CenterView, RandomView
from convnextv2.data.write import WriteSettings, write_beton
from tests.convnextv2 import splitmix
from tests.convnextv2.pictures import Pictures

HEIGHT, WIDTH = 24, 32
SAME = 10  # The first pictures have this size, the others all differ.
SHAPES = ((HEIGHT, WIDTH),) * SAME + tuple((20 + 3 * n, 50 - n) for n in range(14))
SOURCE = Pictures(SHAPES)
EVERY = np.arange(len(SHAPES), dtype=np.uint64)
RANDOM = RandomView(size=(16, 12), scale=(0.2, 1.0))
SEED = 11

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("betons")


@pytest.fixture(scope="module")
def raw(folder: Path) -> Path:
    write_beton(SOURCE, folder / "raw.beton", WriteSettings(mode="raw", num_workers=2))
    return folder / "raw.beton"


@pytest.fixture(scope="module")
def jpg(folder: Path) -> Path:
    """Three pictures of it are then damaged: without a beginning, cut short, and without end."""
    path = folder / "jpg.beton"
    write_beton(SOURCE, path, WriteSettings(mode="jpg", num_workers=2))
    with path.open("r+b") as file:
        for (start, size), (first, last) in zip(
            stored_at(path, (7, 8, 9)), ((0, 0.1), (0.6, 1), (0.97, 1)), strict=True
        ):
            file.seek(start + int(first * size))
            file.write(bytes(int(last * size) - int(first * size)))
    return path


def stored_at(beton: Path, samples: tuple[int, ...]) -> list[tuple[int, int]]:
    """Address and size of images in the file."""
    reader = Reader(str(beton))
    sizes = dict(zip(reader.alloc_table["ptr"], reader.alloc_table["size"], strict=True))
    pointers = reader.metadata["f0"]["data_ptr"]
    return [(int(pointers[n]), int(sizes[pointers[n]])) for n in samples]


@pytest.fixture(scope="module")
def whole_images(raw: Path) -> BetonLoader:
    return BetonLoader(raw, batch_size=4, view=CenterView(size=(HEIGHT, WIDTH), crop=1.0))


@pytest.fixture(scope="module")
def random_views(raw: Path) -> BetonLoader:
    return BetonLoader(raw, batch_size=4, view=RANDOM, seed=SEED)


@pytest.fixture(scope="module")
def jpegs(jpg: Path) -> BetonLoader:
    return BetonLoader(
        jpg, batch_size=4, view=CenterView(size=(HEIGHT, WIDTH), crop=1.0), batches_ahead=1
    )


def by_sample(loader: BetonLoader, samples: Indices, epoch: int = 0) -> dict[int, bytes]:
    """The bytes of every image served, by sample."""
    return {
        int(index): image.numpy().tobytes()
        for batch in loader.batches(samples, epoch)
        for index, image in zip(batch.indices, batch.images, strict=True)
    }


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, _EpochThread)]


def test_raw_images_come_back_as_they_were(whole_images: BetonLoader) -> None:
    samples = np.array([3, 0, 9, 5, 1, 7], np.uint64)
    seen = []
    for batch in whole_images.batches(samples, epoch=6):
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.epoch == 6
        for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
            np.testing.assert_array_equal(image.numpy(), SOURCE.image(int(index)))
            assert label == SOURCE.label(int(index))
            seen.append(int(index))
    assert seen == samples.tolist()


def test_the_last_batch_may_be_short(whole_images: BetonLoader) -> None:
    batches = [
        (tuple(batch.images.shape), len(batch.labels), batch.indices.tolist())
        for batch in whole_images.batches(EVERY[:10])
    ]
    assert batches == [
        ((4, HEIGHT, WIDTH, 3), 4, [0, 1, 2, 3]),
        ((4, HEIGHT, WIDTH, 3), 4, [4, 5, 6, 7]),
        ((2, HEIGHT, WIDTH, 3), 2, [8, 9]),
    ]


def test_no_samples_are_no_batches(whole_images: BetonLoader) -> None:
    assert list(whole_images.batches(EVERY[:0])) == []


def test_jpegs_come_back_nearly_as_they_were(jpegs: BetonLoader) -> None:
    served = by_sample(jpegs, EVERY[:7])
    for index, pixels in served.items():
        image = np.frombuffer(pixels, np.uint8).reshape(HEIGHT, WIDTH, 3).astype(int)
        difference = np.abs(image - SOURCE.image(index))
        assert 0 < difference.mean() < 4  # More than 0: it was compressed.


def test_random_views_are_crops_resized_and_mirrored(random_views: BetonLoader) -> None:
    served = by_sample(random_views, EVERY, epoch=3)
    assert served.keys() == set(range(len(SHAPES)))
    flips = []
    for index, pixels in served.items():
        top, left, h, w, flip = splitmix.random_crop(RANDOM, SEED, 3, index, *SHAPES[index])
        crop = SOURCE.image(index)[top : top + h, left : left + w]
        expected = cv2.resize(crop, (12, 16), interpolation=cv2.INTER_AREA)
        expected = expected[:, ::-1] if flip else expected
        image = np.frombuffer(pixels, np.uint8).reshape(16, 12, 3)
        np.testing.assert_allclose(image.astype(int), expected, rtol=0, atol=1)
        flips.append(flip)
    assert set(flips) == {True, False}


def test_epoch_and_seed_change_what_is_seen(random_views: BetonLoader) -> None:
    def differ(first: dict[int, bytes], second: dict[int, bytes]) -> int:
        return sum(first[index] != second[index] for index in first)

    first = by_sample(random_views, EVERY, epoch=0)
    assert differ(first, by_sample(random_views, EVERY, epoch=0)) == 0
    assert differ(first, by_sample(random_views, EVERY, epoch=1)) == len(EVERY)
    random_views.seed += 1
    other = by_sample(random_views, EVERY, epoch=0)
    random_views.seed -= 1
    assert differ(first, other) == len(EVERY)


def test_resuming_in_the_middle_goes_on_byte_for_byte(random_views: BetonLoader) -> None:
    order = GlobalOrder(EVERY, global_batch_size=8, seed=2)

    def from_batch(start: int) -> list[tuple[list[int], bytes]]:
        share = order.share(4, rank=1, world_size=2, start=start)
        return [
            (batch.indices.tolist(), batch.images.numpy().tobytes())
            for batch in random_views.batches(share, epoch=4)
        ]

    straight = from_batch(0)
    assert len(straight) == 3
    for start in (1, 2):
        assert from_batch(start) == straight[start:]


@pytest.mark.slow
def test_batches_workers_and_threads_do_not_change_an_image(
    raw: Path, random_views: BetonLoader
) -> None:
    expected = by_sample(random_views, EVERY, epoch=1)
    shuffled = np.random.default_rng(0).permutation(EVERY)
    other = BetonLoader(raw, batch_size=5, view=RANDOM, seed=SEED, num_workers=2, batches_ahead=1)
    assert by_sample(other, shuffled, epoch=1) == expected
    strided: dict[int, bytes] = {}
    for rank in range(3):
        strided |= by_sample(random_views, shuffled[rank::3], epoch=1)
    assert strided == expected


@pytest.mark.parametrize("bad", [7, 8, 9], ids=["no beginning", "cut short", "no end"])
def test_a_damaged_jpeg_is_an_error_where_the_batches_are_taken(
    jpegs: BetonLoader, bad: int
) -> None:
    good = [0, 1, 2, 3, 4, 5, 6, 10]
    samples = np.array([*good, 11, bad, 12, 13, *good], np.uint64)
    served: list[int] = []

    def read_all() -> None:
        for batch in jpegs.batches(samples):
            served.extend(batch.indices.tolist())

    with pytest.raises(RuntimeError, match=rf"reading samples \[11, {bad}, 12, 13\].*jpg\.beton"):
        read_all()
    assert served == good
    assert reading_threads() == []
    assert len(by_sample(jpegs, EVERY[:7])) == 7  # The loader goes on after it.


def test_leaving_early_ends_the_reading_thread(whole_images: BetonLoader) -> None:
    for taken in range(3):
        batches = whole_images.batches(np.tile(EVERY[:SAME], 20))
        for _ in range(taken):
            next(batches)
        batches.close()
        assert reading_threads() == []


def test_a_loop_that_breaks_or_raises_ends_the_reading_thread(whole_images: BetonLoader) -> None:
    def train() -> None:
        for _ in whole_images.batches(np.tile(EVERY[:SAME], 20)):
            assert len(reading_threads()) == 1
            raise FloatingPointError("loss is nan")

    with pytest.raises(FloatingPointError):
        train()
    assert reading_threads() == []


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(jpegs: BetonLoader) -> None:
    samples = np.tile(EVERY[:7], 6)
    for batch in jpegs.batches(samples):
        before = batch.images.clone()
        time.sleep(0.02)  # For the thread to run as far ahead as it may.
        assert torch.equal(batch.images, before)


def test_two_epochs_may_be_read_at_once(random_views: BetonLoader) -> None:
    expected = [by_sample(random_views, EVERY, epoch) for epoch in (0, 1)]
    got: list[dict[int, bytes]] = [{}, {}]
    for pair in zip(random_views.batches(EVERY, 0), random_views.batches(EVERY, 1), strict=True):
        for images, batch in zip(got, pair, strict=True):
            images |= {
                int(index): image.numpy().tobytes()
                for index, image in zip(batch.indices, batch.images, strict=True)
            }
    assert got == expected


def test_pytorchs_threads_stay_as_they_were(raw: Path) -> None:
    for threads in (3, 2):
        torch.set_num_threads(threads)
        loader = BetonLoader(raw, batch_size=4, view=RANDOM, num_workers=1)
        assert torch.get_num_threads() == threads
        batches = loader.batches(EVERY[:0])
        assert list(batches) == []
        assert torch.get_num_threads() == threads


def test_importing_leaves_pytorchs_threads_as_they_were() -> None:
    code = (
        "import torch; torch.set_num_threads(3); import convnextv2.data.load; "
        "print(torch.get_num_threads())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == ["3"]


def test_a_batch_moves_with_its_labels_and_keeps_its_indices() -> None:
    batch = Batch(torch.zeros(2, 3, 3, 3), torch.tensor([1, 0]), torch.tensor([8, 9]), epoch=5)
    moved = batch.to(torch.device("meta"))
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert moved.indices.tolist() == [8, 9]
    assert moved.epoch == 5
