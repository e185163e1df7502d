"""Which samples a recipe trains on."""

from pathlib import Path

import numpy as np
import pytest

from convnextv2.data.collection import RGBImage, UnreadableImage
from convnextv2.data.write import WriteSettings, write_beton
from pipelines.config import FinetuneConfig, PretrainConfig
from pipelines.samples import read_labels, training_samples

pytestmark = pytest.mark.slow


class Stripes:
    """Thirty images of three classes; number 4 cannot be read."""

    classes = ("a", "b", "c")

    def __len__(self) -> int:
        return 30

    def name(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return index % 3

    def image(self, index: int) -> RGBImage:
        if index == 4:
            raise UnreadableImage("4: torn")
        return np.full((8, 8, 3), index, np.uint8)

    def fingerprint(self) -> list[object]:
        return []


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "train.beton"
    write_beton(Stripes(), path, WriteSettings(mode="raw", max_unreadable=1))
    return path


def pretrain(train_images: int | None = None, batch: int = 4) -> PretrainConfig:
    return PretrainConfig(
        epochs=1,
        global_batch_size=batch,
        micro_batch_size=batch,
        base_lr=1.0,
        train_images=train_images,
    )


def test_what_cannot_be_read_is_not_trained_on(beton: Path) -> None:
    assert training_samples(beton, pretrain(), 0).tolist() == [i for i in range(30) if i != 4]


def test_a_part_is_chosen_by_the_seed(beton: Path) -> None:
    first, again = (training_samples(beton, pretrain(10), 0).tolist() for _ in range(2))
    assert first == again == sorted(set(first))
    assert len(first) == 10
    assert training_samples(beton, pretrain(10), 1).tolist() != first


def test_few_labels_of_every_class(beton: Path) -> None:
    recipe = FinetuneConfig(
        epochs=1, global_batch_size=4, micro_batch_size=4, base_lr=1.0, labels_per_class=3
    )
    chosen = training_samples(beton, recipe, 0)
    assert sorted(read_labels(beton)[chosen].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert 4 not in chosen
    with pytest.raises(ValueError, match="more than the 9 images of class 1; 9 would work"):
        training_samples(beton, recipe.model_copy(update={"labels_per_class": 10}), 0)


def test_more_than_there_is(beton: Path) -> None:
    with pytest.raises(ValueError, match="29 would work"):
        training_samples(beton, pretrain(31), 0)
    with pytest.raises(ValueError, match="at most 29 would work"):
        training_samples(beton, pretrain(batch=32), 0)
