"""ImageNet-22K's shape: very many small tars, in memory that does not grow with them."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from convnextv2.data.shards.check import check
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import open_shards

TARS = 20_000
GROWTH = 100  # MB
# In a process of its own: the peak of this one was elsewhere.
WRITE = """
import json, resource, sys
from pathlib import Path
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.writing import WriteSettings, write_collection

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

root, folder = map(Path, sys.argv[1:])
before = peak()
settings = WriteSettings(num_shards=2, shuffle_buffer_bytes=8 << 20, page_size=2 << 20)
source, selection = open_selected(root, Selection(val_fraction=1e-12))
write_collection(source, str(root), folder, selection, settings)
print(json.dumps(peak() - before))
"""


def one_image_tar(name: str, content: bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    padded = -(-len(content) // 512) * 512
    return entry.tobuf(tarfile.USTAR_FORMAT) + content.ljust(padded, b"\0") + bytes(1024)


@pytest.mark.slow
def test_twenty_thousand_tars_are_written_and_read_in_bounded_memory(tmp_path: Path) -> None:
    root, folder = tmp_path / "tars", tmp_path / "shards"
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    for number in range(TARS):
        # Each image tells its number by its first bytes of colour.
        _, jpeg = cv2.imencode(".jpg", noise + np.uint8(number % 251))
        synset = f"n{number:08}"
        content = one_image_tar(f"{synset}_{number}.JPEG", jpeg.tobytes())
        (root / f"{synset}.tar").write_bytes(content)
    ended = subprocess.run(
        [sys.executable, "-c", WRITE, str(root), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) < GROWTH
    manifest = read_manifest(folder)
    assert manifest.samples == TARS
    assert manifest.class_counts == (1,) * TARS
    assert manifest.classes == tuple(f"n{number:08}" for number in range(TARS))
    assert check(folder) == []
    labels = open_shards(folder, manifest).labels()
    assert sorted(labels.tolist()) == list(range(TARS))
    assert np.abs(np.diff(labels)).mean() > TARS / 10, "classes are mixed"
