"""Stage `knn` on one worker and on three, against all similarities at once."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.resilience.lease import Lease, Superseded
from convnextv2.analysis.models import read_encoder
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.shards.manifest import read_manifest, write_manifest
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.tasks import Normalize
from pipelines.config import KnnConfig
from pipelines.presets import load_preset
from pipelines.results import read_result
from pipelines.stages import knn
from pipelines.training.data.transforms import evaluation_view
from tests.cluster.process_group import run_group
from tests.convnextv2.data.fixtures.pictures import Pictures, write

pytestmark = pytest.mark.slow

K, TEMPERATURE = 3, 0.1
SPLITS = {"train": 25, "val": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two splits, and the weights of an autoencoder that has learnt nothing."""
    root = tmp_path_factory.mktemp("knn")
    for split, count in SPLITS.items():
        # The sizes differ between the splits, so no validation image is in the bank.
        size = 32 if split == "train" else 31
        write(Pictures(((size, size),) * count), root / split)
    torch.manual_seed(0)
    model = FCMAE.from_size("pocket", image_size=32, patch_size=8, stem_stride=1, decoder_dim=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file(model.state_dict(), root / "fcmae.safetensors")
    return root


def job_in(root: Path, directory: Path) -> knn.KnnJob:
    directory.mkdir(exist_ok=True)
    config = load_preset("demo")
    settings = KnnConfig(k=K, temperature=TEMPERATURE, batch_size=3)
    return knn.KnnJob(
        settings=settings,
        image_size=config.model.image_size,
        evaluate=config.evaluate,
        num_workers=1,
        use_gpu=False,
        directory=directory,
        log=directory / "log",
        data=root,
        weights=root / "fcmae.safetensors",
    )


def classify(root: Path, directory: Path) -> None:
    """Two queries at a time: with three workers they have three, three and four."""
    knn.QUERIES = 2
    knn.classify(job_in(root, directory))


@torch.no_grad()
def seen(root: Path, split: str, encoder: ConvNeXtV2) -> tuple[Tensor, Tensor]:
    """Features of a split in fp64 and its labels."""
    job = job_in(root, root / "unused")
    view = evaluation_view(job.image_size, job.evaluate)
    count = read_manifest(root / split).samples
    loader = BetonLoader(root / split, batch_size=count, view=view)
    (batch,) = loader.batches(np.arange(count, dtype=np.uint64))
    maps = encoder(Normalize()(batch.images, torch.float64))
    means = maps.mean(dim=(2, 3))
    return means / means.norm(dim=1, keepdim=True), batch.labels


def expected(root: Path, numbers: tuple[int, ...] = (0, 1, 2)) -> tuple[float, float]:
    """top-1 and top-2 by a plain loop; of three classes all are among the top five.

    `numbers` has the number among the training images' classes of each class of the others.
    """
    encoder = read_encoder(root / "fcmae.safetensors").double()
    (bank, labels), (queries, truth) = (seen(root, split, encoder) for split in SPLITS)
    num_correct = voted = 0
    for query, label in zip(queries, truth, strict=True):
        cosines, order = (bank @ query).sort(descending=True)
        shares = torch.zeros(3, dtype=torch.float64)
        for cosine, number in zip(cosines[:K], order[:K], strict=True):
            shares[labels[number]] += (cosine / TEMPERATURE).exp()
        num_correct += int(shares.argmax() == numbers[label])
        voted += int(shares[numbers[label]] > 0)
    return num_correct / len(queries), voted / len(queries)


def test_one_worker_and_three_find_the_same(root: Path, tmp_path: Path) -> None:
    results = []
    for workers in (1, 3):
        directory = tmp_path / str(workers)
        if workers == 1:
            classify(root, directory)
        else:
            run_group(classify, workers, tmp_path, root, directory)
        results.append(read_result(directory))
    for result in results:
        assert result.main.images == 10
        assert result.facts == {"bank": 25, "k": K, "temperature": TEMPERATURE}
        assert tuple(result.values.values()) == expected(root)
    assert 0 < results[0].main.value < 1


def test_workers_that_others_have_replaced_publish_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "result"
    score = knn.numbers_of

    def begin_another(neighbours: Tensor) -> Tensor:
        Lease.take(directory)
        return score(neighbours)

    monkeypatch.setattr(knn, "numbers_of", begin_another)
    with pytest.raises(Superseded, match=r"attempt [2-9] has begun"):
        knn.classify(job_in(root, directory))
    assert not list(directory.glob("*result.json*"))
    monkeypatch.undo()
    knn.classify(job_in(root, directory))
    assert read_result(directory).main.images == 10


def test_classes_in_another_order_are_matched_by_name(root: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(root, tmp_path / "other"))
    manifest = read_manifest(other / "val")
    write_manifest(other / "val", replace(manifest, classes=("dog", "eel", "cat")))
    classify(other, tmp_path / "result")
    result = read_result(tmp_path / "result")
    assert tuple(result.values.values()) == expected(root, (1, 2, 0))
    assert expected(root, (1, 2, 0)) != expected(root)
