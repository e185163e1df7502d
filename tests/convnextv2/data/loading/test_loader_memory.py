"""Memory of a process that reads two million samples."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType

from convnextv2.data.shards.manifest import Manifest, Shard, write_manifest
from convnextv2.data.shards.mapped import FIELD_TYPES, RECORD

COUNT = 2_000_000
STRIDE = 16  # Bytes of an image in the file.

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


MEMORY = """
import json, sys
from pathlib import Path
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.order.global_order import GlobalOrder
from convnextv2.data.loading.views import CenterView

def memory() -> dict[str, int]:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}

def serve(folder: str, count: int, batches: int) -> dict[str, int]:
    loader = BetonLoader(Path(folder), batch_size=64, view=CenterView(size=(8, 8)))
    order = GlobalOrder(count, 64, 0)
    stream = loader.batches(order.worker_batches(0, rank=0, world_size=1))
    for _ in range(batches):
        next(stream)
    grown = memory()
    stream.close()
    return grown

before = serve(sys.argv[1], 10_000, 3)  # Compiled, buffers made: what comes now is the samples'.
after = serve(sys.argv[2], int(sys.argv[3]), 2000)
own = after["Anonymous"] - before["Anonymous"]
print(json.dumps({"own": own, "all": after["Rss"] - before["Rss"]}))
"""


def tiny_samples(folder: Path, count: int) -> None:
    """A shard of 2 x 2 pixel images, written with NumPy in one go."""
    page = 8 << 20
    records = np.zeros(count, RECORD)
    before = HeaderType.itemsize + 2 * FieldDescType.itemsize + records.nbytes
    start = -(-before // page) * page
    pointers = start + np.arange(count, dtype=np.uint64) * np.uint64(STRIDE)
    for name, value in (("mode", 1), ("width", 2), ("height", 2), ("data_ptr", pointers)):
        records["f0"][name] = value
    records["f1"] = np.arange(count) % 10
    end = -(-(start + STRIDE * count) // page) * page
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
        file.write(np.random.default_rng(0).bytes(STRIDE * count))
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
    tiny_samples(tmp_path / "large", COUNT)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "small", tmp_path / "large", str(COUNT)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown = json.loads(done.stdout)
    assert grown["own"] < 1 * COUNT
    # The rest is the page cache, which all processes share: the records, and the images themselves.
    assert grown["all"] < (RECORD.itemsize + STRIDE + 1) * COUNT
    assert RECORD.itemsize == 24
