"""What settings ask of their images, against what is there: said before anything is written."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from convnextv2.data.collection import Split
from convnextv2.data.labels.census import Census
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.writing import WriteSettings, write_collection
from convnextv2.data.writing.plan import PLAN, WORK
from pipelines.config import PipelineConfig
from pipelines.graph import Pipeline, StageContext
from pipelines.graph.outline import outline
from pipelines.presets import ConfigError, load_preset
from pipelines.runtime.console import Screen
from pipelines.runtime.session import Session
from pipelines.stages import build_stages
from pipelines.stages.data_conflicts import find_data_conflicts

NAMES = ("ant", "bee", "cat")
SMALL = (
    "pretrain.train_images=null",
    "pretrain.duration=10 steps",
    "pretrain.warmup=0",
    "pretrain.global_batch_size=8",
    "pretrain.micro_batch_size=4",
    "finetune.duration=2 epochs",
    "finetune.warmup=0",
    "finetune.labels_per_class=4",
    "finetune.global_batch_size=12",
    "finetune.micro_batch_size=6",
)
KNN = "knn={k: 5}"
TRAIN = Census(24, NAMES, (8, 8, 8), 0)
VAL = Census(6, NAMES, (2, 2, 2), 0)


def problems(
    *overrides: str,
    train: Census = TRAIN,
    val: Census = VAL,
    wanted: set[str] | None = None,
    written: str = "write",
) -> list[str]:
    config = load_preset("demo", [*SMALL, *overrides])
    images: dict[Split, Census] = {"train": train, "val": val}
    everything = wanted or set(outline(config))
    return find_data_conflicts(config, written, everything, Path("photos"), images)


def test_what_goes_together_is_left_alone() -> None:
    assert problems(KNN, "finetune.evaluate_every=1 step") == []


# An override that the images show to be wrong, and what is said.
TOO_MUCH = {
    "pretrain.train_images=25": "pretrain.train_images: 25 is more than the 24 training images; "
    "24 would work",
    "finetune.labels_per_class=9": "finetune.labels_per_class: 9 is more than the 8 training "
    "images of class ant; 8 would work",
    "finetune.global_batch_size=16": "finetune.global_batch_size: 16 is more than the 12 training "
    "images; at most 12 would work",
    "pretrain.warmup=4 epochs": "pretrain.warmup: the warm-up of 12 steps is longer than the 10 "
    "of training; 10 steps would be all of it",
    "knn={k: 30}": "knn.k: 30 is more than the 24 training images; 24 would work",
}


@pytest.mark.parametrize("override", TOO_MUCH)
def test_too_much_is_refused_with_what_would_work(override: str) -> None:
    batch = ["finetune.micro_batch_size=8"] if override.endswith("=16") else []
    assert problems(override, *batch) == [TOO_MUCH[override]]


def test_all_is_said_together_and_of_the_control_once() -> None:
    found = problems("pretrain.train_images=25", "finetune.labels_per_class=9", "knn={}")
    assert len(found) == 2
    assert len(problems("pretrain.train_images=25", "finetune.labels_per_class=9", KNN)) == 2


def test_only_what_will_run_is_looked_at() -> None:
    unlabelled = Census(24, (), (), 24)
    bare: dict[str, Any] = {"train": unlabelled, "val": unlabelled}
    assert problems("finetune.labels_per_class=9", wanted={"write", "pretrain"}, **bare) == []
    found = problems(KNN, wanted={"write", "pretrain", "knn", "finetune"}, **bare)
    assert "training images of photos have no labels, which knn, finetune would" in found[-1]


HIDDEN = Census(6, NAMES, (0, 0, 0), 6)


@pytest.mark.parametrize(
    ("overrides", "wanted", "readers"),
    [
        ([], None, "evaluate, evaluate-scratch"),
        ([KNN], {"write", "pretrain", "knn"}, "knn"),
        (["finetune.evaluate_every=1 step"], {"write", "pretrain", "finetune"}, "finetune"),
    ],
)
def test_hidden_labels_are_refused_by_those_who_would_need_them(
    overrides: list[str], wanted: set[str] | None, readers: str
) -> None:
    (found,) = problems(*overrides, val=HIDDEN, wanted=wanted)
    assert found.startswith(
        "data: the validation images of photos have no labels, which " + readers
    )
    assert "data.val_fraction=0.1 takes some of the training images instead" in found


def test_hidden_labels_do_no_harm_where_none_looks() -> None:
    assert problems(val=HIDDEN, wanted={"write", "pretrain", "finetune"}) == []


def test_a_few_images_without_labels_are_counted() -> None:
    (found,) = problems(train=Census(24, NAMES, (7, 7, 7), 3))
    assert "3 of the 24 training images of photos have none, which finetune" in found
    assert "data.classes leaves them out" in found


@pytest.mark.parametrize(
    ("classes", "wrong"),
    [(("ant", "cat"), None), (("cat", "ant", "bee"), None), (("ant", "dog"), "dog")],
)
def test_classes_are_matched_by_name(classes: tuple[str, ...], wrong: str | None) -> None:
    found = problems(val=Census(6, classes, (6 // len(classes),) * len(classes), 0))
    if wrong is None:
        assert found == []
    else:
        assert "not among the 3 of the training images: dog" in found[0]
        assert "validation images: ant, dog" in found[0]
        assert "training images: ant, bee, cat" in found[0]
        assert "data.val_fraction=0.1" in found[0]


SEVERAL = Census(24, NAMES, (8, 20, 9), 0, multi_label=True)


def test_images_of_several_classes_are_said_to_be() -> None:
    found = problems("finetune.labels_per_class=null", train=SEVERAL, val=SEVERAL)
    assert found == [
        f"data.multi_label: the {split} images may have several labels; true would work"
        for split in ("train", "val")
    ]
    found = problems("data.multi_label=true")
    assert found == [
        f"data.multi_label: the {split} images have one label each; false would work"
        for split in ("train", "val")
    ]
    assert problems("data.multi_label=true", wanted={"write", "pretrain"}) == []


def test_what_is_not_defined_for_several_classes_is_refused() -> None:
    several: dict[str, Any] = {"train": SEVERAL, "val": SEVERAL}
    assert problems("data.multi_label=true", KNN, **several) == [
        "knn: neighbours vote for one class of an image; leave knn out",
        "finetune.labels_per_class: images are of several classes; finetune.train_images would "
        "train on few of them",
    ]
    assert problems("data.multi_label=true", "finetune.labels_per_class=null", **several) == []


def test_the_intermediate_step_is_asked_for_its_own_images() -> None:
    recipe = "{duration: 2, global_batch_size: 32, micro_batch_size: 16, base_lr: 1}"
    found = problems(f"intermediate={recipe}", written="write-intermediate")
    assert found == [
        "intermediate.global_batch_size: 32 is more than the 24 training images; at most 24 would "
        "work"
    ]


# The stage that writes


class Here(Session):
    """A session that works in this process and tracks nothing."""

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        while_waiting: Callable[[], None],
    ) -> Iterator[Any]:
        return map(function, items)

    @contextmanager
    def attempt(self, context: StageContext) -> Iterator[str]:
        yield "here"


def draw(root: Path, **splits: dict[str, int]) -> Path:
    """So many pictures of each class in each split."""
    for split, counts in splits.items():
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                colour = (40 * number, 80, 160)
                Image.new("RGB", (8, 8), colour).save(root / split / name / f"{number}.png")
    return root


def run(config: PipelineConfig, source: Path, run_dir: Path) -> Path:
    """Bring the images of a configuration to shards; all of its stages are wanted."""
    session = Here(config, run_dir, Screen(Console(quiet=True)))
    stages = build_stages(config, source, session, [], set(outline(config)))
    write = [stage for stage in stages if stage.name == "write"]
    (result,) = Pipeline(run_dir, write).run()
    return result.context.directory


def test_nothing_is_written_of_images_that_do_not_go_with_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = draw(tmp_path / "photos", train={"ant": 8, "cat": 8}, val={"ant": 1, "bee": 1})
    config = load_preset("demo", [*SMALL, "finetune.labels_per_class=9"])
    with pytest.raises(ConfigError) as refused:
        run(config, photos, tmp_path / "run")
    assert [problem.split(":")[0] for problem in refused.value.problems] == [
        "finetune.labels_per_class",
        "data",
    ]
    assert str(photos) in refused.value.about
    assert not list(tmp_path.rglob("*.beton"))
    assert len(list(tmp_path.rglob(PLAN))) == 2
    # With settings that go with them, writing goes on from the listing that is there.
    monkeypatch.setattr("convnextv2.data.writing.write.make_plan", None)
    folder = run(load_preset("demo", [*SMALL, "finetune=null"]), photos, tmp_path / "run")
    assert read_manifest(folder / "train").samples == 16
    assert not (folder / "train" / WORK).exists()


def test_a_source_that_cannot_be_listed_is_said_of_both_splits(tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", train={"ant": 2}, val={"ant": 2})
    classes = tmp_path / "classes.txt"
    classes.write_text("fly")
    config = load_preset("demo", [*SMALL, f"data.classes={classes}"])
    with pytest.raises(ConfigError) as refused:
        run(config, photos, tmp_path / "run")
    assert [problem[:6] for problem in refused.value.problems] == ["train:", "val: 1"]


def test_shards_of_before_are_matched_by_the_names_in_their_manifests(tmp_path: Path) -> None:
    photos = draw(
        tmp_path / "photos", train={"ant": 8, "bee": 8, "cat": 8}, val={"bee": 2, "cat": 2}
    )
    for split in ("train", "val"):
        source, selection = open_selected(photos, Selection(split))
        folder = tmp_path / "shards" / split
        write_collection(source, "photos", folder, selection, WriteSettings())
    config = load_preset("demo", SMALL)
    run(config, tmp_path / "shards", tmp_path / "run")
    # The other way round the validation images have a class more.
    (tmp_path / "shards/train").rename(tmp_path / "shards/was-train")
    (tmp_path / "shards/val").rename(tmp_path / "shards/train")
    (tmp_path / "shards/was-train").rename(tmp_path / "shards/val")
    with pytest.raises(ConfigError, match=r"classes of the validation images .*: ant\n"):
        run(config, tmp_path / "shards", tmp_path / "again")
    assert not (tmp_path / "again" / "stages").exists()
