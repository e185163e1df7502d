"""Sets of labels: what they are, in shards and in batches."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from convnextv2.data.augment import Augment, Mixing
from convnextv2.data.collection import DataError
from convnextv2.data.labels.label_sets import LABEL_SETS, LabelSets
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.loading.views import CenterView
from convnextv2.data.shards.check import check
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import open_shards
from convnextv2.data.sources import Columns, open_source
from convnextv2.data.writing import WriteSettings
from tests.convnextv2.data.fixtures.archives import jpeg, put
from tests.convnextv2.data.fixtures.pictures import write

CLASSES = ("ant", "bee", "cat")
LABELS = [["ant", "cat"], [], ["bee"], ["cat", "ant"], ["ant"], ["bee", "cat"]]
WHOLE = CenterView(size=(8, 12), crop=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of images whose height tells which of `LABELS` they have."""
    root = tmp_path_factory.mktemp("several")
    rows = ["path,labels"]
    for number, names in enumerate(LABELS):
        put(root / f"{number}.jpg", jpeg(number, (12, 8 + number)))
        rows.append(f"{number}.jpg,{'|'.join(names)}")
    path = put(root / "list.csv", "\n".join(rows))
    source = open_source(path, "train", columns=Columns(multi_label=True))
    write(source, root / "shards", WriteSettings(num_shards=2))
    return root / "shards"


def hot(names: list[str], classes: tuple[str, ...] = CLASSES) -> list[float]:
    return [float(name in names) for name in classes]


def numbers_of(folder: Path) -> list[int]:
    """Which of `LABELS` each sample has."""
    shards = open_shards(folder, read_manifest(folder))
    fields = [shards.records(number)["f0"]["height"] for number in range(len(shards.table))]
    return (np.concatenate(fields).astype(int) - 8).tolist()


def test_equal_sets_are_one() -> None:
    sets = LabelSets.of([[2, 0], [], [1]])
    assert sets.pairs.tolist() == [[0, 0], [0, 2], [2, 1]]
    labels = np.array([0, 2, 1, -1, 0])
    assert sets.multi_hot(labels, 3).tolist() == [
        [1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1]
    ]  # fmt: skip
    assert sets.class_counts(labels, 4).tolist() == [2, 1, 2, 0]


def test_shards_give_back_what_the_list_said(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.classes == CLASSES
    assert manifest.class_counts == (3, 2, 3)
    assert manifest.census.multi_label
    assert manifest.census.unlabelled == 0
    expected = [hot(LABELS[number]) for number in numbers_of(folder)]
    every = np.arange(len(LABELS), dtype=np.uint64)
    (batch,) = BetonLoader(folder, batch_size=len(LABELS), view=WHOLE).batches(every)
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == expected
    assert check(folder) == []


def test_classes_of_another_order_are_matched_by_name(folder: Path) -> None:
    other = ("cat", "dog", "bee", "ant")
    shards = open_shards(folder, read_manifest(folder), other)
    targets = shards.targets(np.arange(len(LABELS), dtype=np.uint64))
    assert targets.tolist() == [hot(LABELS[number], other) for number in numbers_of(folder)]
    with pytest.raises(DataError, match="not among the 2 of"):
        open_shards(folder, read_manifest(folder), ("ant", "bee"))


def test_partners_have_the_labels_of_their_neighbours(folder: Path) -> None:
    loader = BetonLoader(folder, batch_size=6, view=WHOLE, augment=Augment(mixing=Mixing()))
    (batch,) = loader.batches(np.arange(len(LABELS), dtype=np.uint64))
    assert batch.partner_labels is not None
    assert torch.equal(batch.partner_labels, batch.labels[[1, 0, 3, 2, 5, 4]])


def test_sets_that_have_changed_are_refused(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    content = bytearray((other / LABEL_SETS).read_bytes())
    content[-1] ^= 1
    (other / LABEL_SETS).write_bytes(content)
    with pytest.raises(DataError, match="has changed since it was written"):
        open_shards(other, read_manifest(other))
    assert "has changed" in check(other)[0]
    (other / LABEL_SETS).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_shards(other, read_manifest(other))
