"""The evaluation loop: every image once, on any number of workers, in step with each other."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score

from cluster import group
from cluster.batch_layout import BatchLayout
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import ZeroSettings
from convnextv2.data.sources import Columns, open_source
from convnextv2.data.writing import WriteSettings
from convnextv2.encoder import ConvNeXtV2
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from convnextv2.tasks import TaskOutput
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.classify import ClassifyTask
from pipelines.config import DataConfig, EvaluateConfig
from pipelines.presets import load_preset
from pipelines.results.classification import multi_label
from pipelines.training.validation import Validation, worker_samples
from tests.cluster.process_group import run_group
from tests.convnextv2.data.fixtures.pictures import CLASSES, Pictures, write

pytestmark = pytest.mark.slow

IMAGES, BATCH = 8, 2
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validation") / "val"
    write(Pictures(((16, 16),) * IMAGES), folder, WriteSettings(mode="raw"))
    return folder


def opened(folder: Path, batch_size: int = BATCH, classes: tuple[str, ...] = CLASSES) -> Validation:
    settings = EvaluateConfig(batch_size=batch_size, crop=1.0)
    return Validation.opened(folder, 16, settings, 1, classes)


def named(*, multi_label: bool) -> set[str]:
    """What the configuration says is measured: the names that keep_best may have."""
    recipe = load_preset("demo").finetune
    assert recipe is not None
    specs = recipe.validation_metrics(DataConfig(multi_label=multi_label))
    return {spec.during_training().name for spec in specs}


def task() -> ClassifyTask:
    torch.manual_seed(0)
    model = ConvNeXtV2.from_size("pocket", num_classes=3, stem_stride=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return ClassifyTask(model, label_smoothing=0.3).eval()


def counted(forward: Callable[[Batch], TaskOutput], seen: list[int]) -> Callable[..., TaskOutput]:
    """Each call waits for the others, as a forward pass of ZeRO-3 does."""

    def call(batch: Batch) -> TaskOutput:
        if dist.is_initialized():
            dist.all_reduce(torch.zeros(1))
        seen.append(len(batch.labels))
        return forward(batch)

    return call


def test_the_result_is_that_of_all_images_at_once(folder: Path) -> None:
    validation, model = opened(folder), task()
    result = validation.run(model, CPU)
    (batch,) = opened(folder, IMAGES).loader.batches(np.arange(IMAGES, dtype=np.uint64))
    logits = model.logits(batch)
    assert result == {
        "val_top1": pytest.approx((logits.argmax(dim=1) == batch.labels).double().mean().item()),
        "val_top5": 1.0,
        "val_loss": pytest.approx(F.cross_entropy(logits, batch.labels).item(), rel=1e-5),
    }
    assert 0 < result["val_top1"] < 1
    assert result.keys() == named(multi_label=False)
    # Again, as between steps of training: the same, and no gradient was kept.
    assert validation.run(model, CPU) == result
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_images_are_judged_by_the_classes_of_the_model(folder: Path) -> None:
    """The folder's labels are those of cat, dog, eel; the model has them as 2, 0, 1."""
    renumbered = opened(folder, IMAGES, ("dog", "eel", "cat"))
    (batch,) = opened(folder, IMAGES).loader.batches(np.arange(IMAGES, dtype=np.uint64))
    ((scores, labels),) = renumbered.scored(task(), CPU)
    assert labels.tolist() == [(2, 0, 1)[label] for label in batch.labels]
    accuracy = (scores.argmax(dim=1) == labels).double().mean().item()
    assert renumbered.run(task(), CPU)["val_top1"] == pytest.approx(accuracy)


def of_many_classes(batch: Batch) -> TaskOutput:
    """Image i's label is its (i + 1)th best answer of seven."""
    scores = torch.zeros(len(batch.labels), 7)
    for row, (index, label) in enumerate(zip(batch.indices, batch.labels, strict=True)):
        others = [other for other in range(7) if other != label]
        order = [*others[: int(index)], int(label), *others[int(index) :]]
        scores[row, order] = torch.arange(7.0, 0, -1)
    return TaskOutput(torch.zeros(()), {}, scores)


def test_top5_is_among_five(folder: Path) -> None:
    result = opened(folder).run(of_many_classes, CPU)
    assert result["val_top1"] == pytest.approx(1 / IMAGES)
    assert result["val_top5"] == pytest.approx(5 / IMAGES)


def work(
    folder: Path,
    single: Path,
    several: Path,
    alone: dict[str, float],
    alone_of_several: dict[str, float],
) -> None:
    expected = {name: pytest.approx(value, rel=1e-5) for name, value in alone.items()}
    assert sorted(itertools.chain(*group.all_gather(worker_samples(IMAGES).tolist()))) == list(
        range(IMAGES)
    )
    # 2, 3 and 3 images: one or two batches of two, one of a hundred.
    for batch_size, calls in ((2, [[2, 1], [2, 1], [2, 1]]), (100, [[2], [3], [3]])):
        seen: list[int] = []
        assert opened(folder, batch_size).run(counted(task(), seen), CPU) == expected
        assert group.all_gather(seen) == calls
    seen = []
    assert opened(single).run(counted(of_many_classes, seen), CPU)["val_top1"] == 1
    assert group.all_gather(seen) == [[1], [1], [1]]
    expected_of_several = {n: pytest.approx(v, rel=1e-5) for n, v in alone_of_several.items()}
    assert opened(several).run(task(), CPU) == expected_of_several
    assert opened(folder).run(sharded(), CPU) == expected


def sharded() -> ClassifyTask:
    """The task in ZeRO stage 3: no worker can compute a layer without the others."""
    module = task()
    DeepSpeedEngine(
        module,
        parameter_groups(module, GroupRule(weight_decay=0.0), module.depths),
        betas=(0.9, 0.999),
        settings=EngineSettings(zero=ZeroSettings(stage=3, param_persistence_threshold=0)),
        batch_layout=BatchLayout(3, 1, 3),
        device=CPU,
    )
    assert all(parameter.numel() == 0 for parameter in module.parameters())
    return module.eval()


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that may be of several of three classes."""
    root = tmp_path_factory.mktemp("several")
    labels = ("cat", "dog|eel", "", "cat|dog", "eel", "dog", "cat|eel")
    for number in range(len(labels)):
        Image.fromarray(Pictures(((16, 16),) * 9).image(number)).save(root / f"{number}.png")
    rows = [f"{number}.png,{names}" for number, names in enumerate(labels)]
    (root / "list.csv").write_text("\n".join(["path,label", *rows]))
    source = open_source(root / "list.csv", "train", columns=Columns(multi_label=True))
    write(source, root / "val", WriteSettings(mode="raw"))
    return root / "val"


def test_images_of_several_classes_have_a_mean_average_precision(several: Path) -> None:
    validation, model = opened(several), task()
    (batch,) = opened(several, 7).loader.batches(np.arange(7, dtype=np.uint64))
    logits = model.logits(batch).detach()
    result = validation.run(model, CPU)
    best = logits.argmax(dim=1)
    assert result == {
        "val_top1": pytest.approx(batch.labels[torch.arange(7), best].mean().item()),
        "val_top5": pytest.approx(6 / 7),  # One of them is of no class.
        "val_loss": pytest.approx(
            F.binary_cross_entropy_with_logits(logits, batch.labels).item(), rel=1e-5
        ),
        "val_map": pytest.approx(average_precision_score(batch.labels, logits, average="macro")),
    }
    assert result.keys() == named(multi_label=True)
    described = multi_label(logits, batch.labels, CLASSES)
    assert described.values["map"] == result["val_map"]
    precisions = [float(value or 0) for _, value in described.tables[0].rows]
    assert np.mean(precisions) == pytest.approx(result["val_map"])
    assert described.values["top1"] == pytest.approx(result["val_top1"])


def test_three_workers_find_what_one_finds(folder: Path, several: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    write(Pictures(((16, 16),)), single, WriteSettings(mode="raw"))
    alone = [opened(each).run(task(), CPU) for each in (folder, several)]
    run_group(work, 3, tmp_path, folder, single, several, *alone)
