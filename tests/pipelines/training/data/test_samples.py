"""Which samples a recipe trains on."""

from pathlib import Path

import pytest

from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import open_shards
from convnextv2.data.writing import WriteSettings
from convnextv2.recipe.duration import epochs
from pipelines.config import DataConfig, FinetuneConfig, PretrainConfig
from pipelines.training.data.samples import count, training_order, training_samples
from tests.convnextv2.data.fixtures.pictures import Pictures, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of three classes, of which one cannot be read: 29 samples."""
    folder = tmp_path_factory.mktemp("samples") / "train"
    source = Pictures(((8, 8),) * 30, unreadable=(4,))
    write(source, folder, WriteSettings(mode="raw", max_unreadable=1))
    return folder


def pretrain(train_images: int | None = None, batch: int = 4) -> PretrainConfig:
    return PretrainConfig(
        duration=epochs(1),
        global_batch_size=batch,
        micro_batch_size=batch,
        base_lr=1.0,
        train_images=train_images,
    )


def test_what_cannot_be_read_is_not_trained_on(folder: Path) -> None:
    assert training_samples(folder, pretrain(), 0) == 29


def test_a_part_is_chosen_by_the_seed(folder: Path) -> None:
    first, again, other = (training_samples(folder, pretrain(10), seed) for seed in (0, 0, 1))
    assert not isinstance(first, int)
    assert not isinstance(again, int)
    assert not isinstance(other, int)
    assert first.tolist() == again.tolist() == sorted(set(first.tolist()))
    assert count(first) == 10
    assert other.tolist() != first.tolist()


def test_few_labels_of_every_class(folder: Path) -> None:
    recipe = FinetuneConfig(
        duration=epochs(1), global_batch_size=4, micro_batch_size=4, base_lr=1.0, labels_per_class=3
    )
    chosen = training_samples(folder, recipe, 0)
    assert not isinstance(chosen, int)
    labels = open_shards(folder, read_manifest(folder)).labels(chosen)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="the 9 training images of class dog; 9 would work"):
        training_samples(folder, recipe.model_copy(update={"labels_per_class": 10}), 0)


def test_the_order_is_random_or_by_blocks_as_configured(folder: Path) -> None:
    full = training_order(folder, pretrain(), DataConfig(), 0)
    blocks = training_order(folder, pretrain(), DataConfig(shuffle="block-random"), 0)
    assert full.blocks is None
    assert blocks.blocks is not None
    assert blocks.blocks.tolist() == [0, 29]
    assert full.batches_per_epoch == blocks.batches_per_epoch == 7


def test_more_than_there_is(folder: Path) -> None:
    with pytest.raises(ValueError, match="29 would work"):
        training_samples(folder, pretrain(31), 0)
    with pytest.raises(ValueError, match="at most 29 would work"):
        training_samples(folder, pretrain(batch=32), 0)
