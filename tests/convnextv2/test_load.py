"""Loading: real shards, the same bytes whatever the batches, and failures that are heard."""

import hashlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption

from convnextv2.data.augment import Augment, Mixing, RandAugment, RandomErasing
from convnextv2.data.load import Batch, BetonLoader, _EpochThread
from convnextv2.data.local_cache import LocalCache
from convnextv2.data.manifest import Manifest, Shard, read_manifest, write_manifest
from convnextv2.data.order import GlobalOrder, Indices
from convnextv2.data.shards import open_shards
from convnextv2.data.views import CenterView, RandomView
from convnextv2.data.writing import WriteSettings
from tests.convnextv2.pictures import Pictures, write

HEIGHT, WIDTH = 24, 32
SAME = 60
SHAPES = ((HEIGHT, WIDTH),) * SAME + tuple((20 + 3 * n, 50 - n) for n in range(12))
SOURCE = Pictures(SHAPES)
COUNT = len(SHAPES)
EVERY = np.arange(COUNT, dtype=np.uint64)
RANDOM = RandomView(size=(16, 12), scale=(0.2, 1.0))
WHOLE = CenterView(size=(HEIGHT, WIDTH), crop=1.0)
RECIPE = Augment(rand_augment=RandAugment(), erasing=RandomErasing(0.5), mixing=Mixing(0.8, 1.0))
SEED = 11
WORLDS = (1, 2, 3, 5, 8)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for name, mode, count in (("raw", "raw", 3), ("one", "raw", 1), ("jpg", "jpg", 2)):
        write(SOURCE, root / name, WriteSettings(mode=mode, num_shards=count))  # type: ignore[arg-type]
    return root


def loader_of(folder: Path, **changes: object) -> BetonLoader:
    settings: dict[str, object] = {"batch_size": 4, "view": RANDOM, "seed": SEED, **changes}
    return BetonLoader(folder, **settings)  # type: ignore[arg-type]


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


def bytes_of(batch: Batch) -> list[bytes]:
    shares = batch.coefficients
    return [
        image.numpy().tobytes() + (b"" if shares is None else shares[row].numpy().tobytes())
        for row, image in enumerate(batch.images)
    ]


def by_sample(loader: BetonLoader, samples: Indices, epoch: int = 0) -> dict[int, bytes]:
    """The bytes of every image served, by sample."""
    return {
        int(index): data
        for batch in loader.batches(samples, epoch)
        for index, data in zip(batch.indices, bytes_of(batch), strict=True)
    }


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, _EpochThread)]


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
    theirs = Loader(
        str(shards.paths[0]), batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL,
        indices=same.astype(np.int64),
        pipelines={"image": [CenterCropRGBImageDecoder((HEIGHT, HEIGHT), 1.0)]},
    )  # fmt: skip
    view = CenterView(size=(HEIGHT, HEIGHT), crop=1.0, interpolation="area")
    ours = loader_of(root / "one", view=view).batches(same)
    for (images, labels), batch in zip(theirs, ours, strict=True):
        assert labels.reshape(-1).tolist() == batch.labels.tolist()
        np.testing.assert_array_equal(np.asarray(images), batch.images.numpy())


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
        shares = [list(order.share(2, rank=rank, world_size=ranks)) for rank in range(ranks)]
        return [
            {
                index: data
                for loader, part in zip(loaders, parts, strict=False)
                for index, data in by_sample(loader, part, 2).items()
            }
            for parts in zip(*shares, strict=True)
        ]

    batches = global_batches(world_size)
    assert batches == global_batches(1)
    assert sorted(index for batch in batches for index in batch) == EVERY.tolist()


def test_resuming_at_every_position_is_the_straight_run_byte_for_byte(root: Path) -> None:
    order = GlobalOrder(COUNT, 12, SEED)
    loader = loader_of(root / "jpg", augment=RECIPE, batch_size=6)

    def served(start: int, rank: int, world_size: int) -> list[list[bytes]]:
        share = order.share(4, rank=rank, world_size=world_size, start=start)
        return [bytes_of(batch) for batch in loader.batches(share, epoch=4)]

    straight = served(0, 0, 1)
    for consumed in range(0, order.samples_per_epoch, 12):
        _, start = order.locate(consumed)
        assert served(start, 0, 1) == straight[2 * start :]
        # And on two workers: the same images of every global batch.
        halves = [served(start, rank, 2) for rank in (0, 1)]
        for number, parts in enumerate(zip(*halves, strict=True)):
            whole = straight[2 * (start + number)] + straight[2 * (start + number) + 1]
            assert sorted(data for part in parts for data in part) == sorted(whole)


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


def test_a_second_epoch_at_once_is_refused(root: Path) -> None:
    loader = loader_of(root / "raw")
    first = loader.batches(EVERY)
    next(first)
    with pytest.raises(RuntimeError, match="another epoch of this loader is still open"):
        next(loader.batches(EVERY, epoch=1))
    first.close()
    assert next(loader.batches(EVERY, epoch=1)).epoch == 1


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(root: Path) -> None:
    for batch in loader_of(root / "jpg", batches_ahead=1).batches(np.tile(EVERY[:8], 6)):
        before = batch.images.clone()
        time.sleep(0.02)  # For the thread to run as far ahead as it may.
        assert torch.equal(batch.images, before)


def test_shards_are_read_from_the_cache_as_they_arrive(root: Path, tmp_path: Path) -> None:
    expected = by_sample(loader_of(root / "raw"), EVERY)
    cache = LocalCache(root / "raw", tmp_path)
    loader = loader_of(root / "raw", cache=cache, batches_ahead=1)
    served: dict[int, bytes] = {}
    moved = []
    for batch in loader.batches(np.tile(EVERY, 4)):
        served |= dict(zip(batch.indices.tolist(), bytes_of(batch), strict=True))
        moved.append(sum(path.parent == tmp_path for path in loader.shards.paths))
        if len(moved) == 10:
            cache.start()
        if len(moved) > 10:
            time.sleep(0.02)
    assert served == expected
    assert moved[0] == 0
    assert moved[-1] == 3
    cache.close()


def test_mixing_needs_pairs(root: Path) -> None:
    with pytest.raises(ValueError, match="batch size 3 is odd"):
        loader_of(root / "raw", augment=RECIPE, batch_size=3)
    (batch,) = loader_of(root / "raw", augment=RECIPE).batches(EVERY[:4])
    assert batch.coefficients is not None
    assert batch.partner_labels is not None
    assert batch.partner_labels.tolist() == [batch.labels[row].item() for row in (1, 0, 3, 2)]


def test_pytorchs_threads_stay_as_they_were(root: Path) -> None:
    for threads in (3, 2):
        torch.set_num_threads(threads)
        loader = loader_of(root / "raw")
        assert torch.get_num_threads() == threads
        assert list(loader.batches(EVERY[:0])) == []
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


def test_a_second_process_compiles_nothing(root: Path) -> None:
    by_sample(loader_of(root / "raw"), EVERY[:4])
    script = (
        "import sys; from pathlib import Path; from tests.convnextv2.test_load import *;"
        "by_sample(loader_of(Path(sys.argv[1])), EVERY[:4]);"
        "from convnextv2.data.views import serve_views as kernel;"
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


MEMORY = """
import json, sys
from pathlib import Path
import numpy as np
from convnextv2.data.load import BetonLoader
from convnextv2.data.order import GlobalOrder
from convnextv2.data.views import CenterView

def own_memory() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024

def serve(folder: str, count: int, batches: int) -> None:
    loader = BetonLoader(Path(folder), batch_size=64, view=CenterView(size=(8, 8)))
    order = GlobalOrder(count, 64, 0)
    stream = loader.batches(order.share(0, rank=0, world_size=1))
    for _ in range(batches):
        next(stream)
    stream.close()

serve(sys.argv[1], 10_000, 3)  # Compiled, buffers made: what comes now is the samples'.
before = own_memory()
serve(sys.argv[2], 2_000_000, 2000)
print(own_memory() - before)
"""


def tiny_samples(folder: Path, count: int) -> None:
    """A shard of 2 x 2 pixel images, written with NumPy in one go."""
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType

    from convnextv2.data.shards import FIELD_TYPES, RECORD

    page, stride = 8 << 20, 16
    records = np.zeros(count, RECORD)
    before = HeaderType.itemsize + 2 * FieldDescType.itemsize + records.nbytes
    start = -(-before // page) * page
    pointers = start + np.arange(count, dtype=np.uint64) * np.uint64(stride)
    for name, value in (("mode", 1), ("width", 2), ("height", 2), ("data_ptr", pointers)):
        records["f0"][name] = value
    records["f1"] = np.arange(count) % 10
    end = -(-(start + stride * count) // page) * page
    table = np.zeros(count, ALLOC_TABLE_TYPE)
    table["sample_id"], table["ptr"], table["size"] = np.arange(count), pointers, 12
    header, fields = np.zeros(1, HeaderType), np.zeros(2, FieldDescType)
    header["version"], header["num_fields"], header["page_size"] = CURRENT_VERSION, 2, page
    header["num_samples"], header["alloc_table_ptr"] = count, end
    fields["type_id"] = FIELD_TYPES
    folder.mkdir()
    path = folder / "train-00000-of-00001.beton"
    with path.open("wb") as file:
        file.write(header.tobytes() + fields.tobytes() + records.tobytes())
        file.seek(start)
        file.write(np.random.default_rng(0).bytes(stride * count))
        file.truncate(end)
        file.seek(end)
        file.write(table.tobytes())
    shard = Shard(path.name, count, path.stat().st_size, hashlib.sha256(b"").hexdigest())
    manifest = Manifest(
        split="train", shards=(shard,), classes=(), class_counts=(), skipped=(), settings={},
        selection={}, source="", source_fingerprint="",
    )  # fmt: skip
    write_manifest(folder, manifest)


def test_two_million_samples_take_no_memory_of_a_process(tmp_path: Path) -> None:
    """FFCV's reader and manager take 525 bytes a sample in every process: 1.05 GB here."""
    tiny_samples(tmp_path / "small", 10_000)
    tiny_samples(tmp_path / "large", 2_000_000)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) < 4 * 2_000_000
