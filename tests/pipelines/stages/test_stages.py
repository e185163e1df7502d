"""Which stages there are, what decides the result of each, and what training starts from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from convnextv2.data.collection import DataError
from convnextv2.data.shards.manifest import write_manifest
from convnextv2.data.writing import WriteSettings
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.tasks.classify import ClassifyTask
from pipelines.config import PipelineConfig
from pipelines.graph import Stage, StageContext
from pipelines.graph.outline import outline, stages_of_command
from pipelines.presets import load_preset
from pipelines.runtime.session import Session
from pipelines.stages import build_stages, finetune
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.pipelines.stages.jobs import made_up_job

RECIPE = {"duration": "2 epochs", "global_batch_size": 8, "micro_batch_size": 4, "base_lr": 1}
PROBE = {**RECIPE, "trainable": "head"}
INTERMEDIATE = {**RECIPE, "data": {"source": "/no/such/22k"}}
NO_SESSION = cast(Session, None)


def configured(*overrides: str, **sections: Any) -> PipelineConfig:
    """The demo with sections added, as JSON on the command line."""
    added = [f"{name}={json.dumps(value)}" for name, value in sections.items()]
    return load_preset("demo", [*added, *overrides])


def everything(*overrides: str) -> PipelineConfig:
    return configured(*overrides, knn={"k": 5}, linear_probe=PROBE, intermediate=INTERMEDIATE)


def test_the_outline_of_everything() -> None:
    assert dict(outline(everything())) == {
        "write": (),
        "pretrain": ("write",),
        "knn": ("write", "pretrain"),
        "linear-probe": ("write", "pretrain"),
        "write-intermediate": (),
        "intermediate": ("write-intermediate", "pretrain"),
        "finetune": ("write", "intermediate"),
        "finetune-scratch": ("write",),
        "evaluate": ("write", "finetune"),
        "evaluate-scratch": ("write", "finetune-scratch"),
        "evaluate-linear-probe": ("write", "linear-probe"),
        "report": tuple(name for name in outline(everything()) if name != "report"),
    }


def test_all_images_are_written_before_anything_is_trained() -> None:
    """So that what is wrong with them is said before hours are spent."""
    assert list(outline(everything()))[:3] == ["write", "write-intermediate", "pretrain"]


def test_the_outline_without_pretraining() -> None:
    config = configured("finetune.scratch_baseline=false", pretrain=None)
    assert dict(outline(config)) == {
        "write": (),
        "finetune": ("write",),
        "evaluate": ("write", "finetune"),
        "report": ("write", "finetune", "evaluate"),
    }


def test_the_outline_without_fine_tuning() -> None:
    config = configured(finetune=None, knn={})
    assert list(outline(config)) == ["write", "pretrain", "knn", "report"]


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        ("pretrain", ["pretrain"]),
        ("knn", ["knn"]),
        ("linear-probe", ["linear-probe", "evaluate-linear-probe"]),
        ("intermediate", ["intermediate"]),
        ("finetune", ["finetune", "finetune-scratch"]),
        ("evaluate", ["evaluate", "evaluate-scratch", "evaluate-linear-probe"]),
        ("report", ["report"]),
    ],
)
def test_what_a_command_brings_about(command: str, stages: list[str]) -> None:
    assert stages_of_command(command, everything()) == stages


def test_a_command_whose_stage_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ValueError, match="demo has no stage 'knn'; it has pretrain, finetune, ev"):
        stages_of_command("knn", configured())
    with pytest.raises(ValueError, match="no stage 'evaluate'; it has pretrain, knn and report"):
        stages_of_command("evaluate", configured(finetune=None, knn={}))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that are finished by their manifests, with as many images as the recipes ask for."""
    root = tmp_path_factory.mktemp("shards")
    for split in ("train", "val"):
        manifest = write(Pictures(((16, 16),) * 9), root / split, WriteSettings(mode="raw"))
        shard = replace(manifest.shards[0], samples=60_000)
        counted = replace(manifest, shards=(shard,), class_counts=(20_000,) * 3)
        write_manifest(root / split, counted)
    return root


def stages_of(shards: Path, config: PipelineConfig) -> dict[str, Stage]:
    assert config.intermediate is not None
    data = config.intermediate.data.model_copy(update={"source": shards})
    changed = config.intermediate.model_copy(update={"data": data})
    config = config.model_copy(update={"intermediate": changed})
    stages = build_stages(config, shards, NO_SESSION, [], set(outline(config)))
    return {stage.name: stage for stage in stages}


def changed_by(shards: Path, override: str) -> set[str]:
    """Stages whose own settings a changed value is in."""
    before, depends_on = stages_of(shards, everything()), stages_of(shards, everything(override))
    assert list(before) == list(depends_on)
    return {name for name in before if before[name].settings != depends_on[name].settings}


TUNED = {"finetune", "finetune-scratch"}
EVALUATED = {"evaluate", "evaluate-scratch"}
PROBED = {"linear-probe", "evaluate-linear-probe"}
TRAINED = {"pretrain", "linear-probe", "intermediate"} | TUNED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("seed=1", TRAINED),
        ("pretrain.dtype=bf16", {"pretrain"}),
        ("finetune.dtype=bf16", TUNED),
        ("linear_probe.dtype=bf16", {"linear-probe"}),
        ("pretrain.compile=true", {"pretrain"}),
        ("finetune.compile=true", TUNED),
        ("data.shuffle=block-random", TRAINED - {"intermediate"}),
        ("intermediate.data.shuffle=block-random", {"intermediate"}),
        ("model.patch_size=16", {"pretrain"}),
        ("model.image_size=64", TRAINED | EVALUATED | PROBED | {"knn"}),
        ("model.size=atto", TRAINED | EVALUATED | PROBED),
        ("pretrain.mask_ratio=0.75", {"pretrain"}),
        ("finetune.base_lr=2", TUNED),
        ("finetune.ema_decay=0.9", TUNED),
        ("finetune.image_size=64", TUNED | EVALUATED),
        ("linear_probe.base_lr=2", {"linear-probe"}),
        ("linear_probe.image_size=64", PROBED),
        ("intermediate.layer_decay=0.8", {"intermediate"}),
        ("knn.temperature=1", {"knn"}),
        ("evaluate.crop=0.5", {"knn", "evaluate-linear-probe"} | EVALUATED),
    ],
)
def test_what_is_computed_is_in_the_key(override: str, stages: set[str], shards: Path) -> None:
    assert changed_by(shards, override) == stages


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "cluster.num_workers=1",
        "cluster.zero.stage=2",
        "cluster.max_failures=9",
        "pretrain.micro_batch_size=32",
        "finetune.micro_batch_size=8",
        "pretrain.checkpoint_every=7 steps",
        "finetune.keep_last=5",
        "finetune.keep_every=7 steps",
        "finetune.evaluate_every=7 steps",
        "finetune.max_skipped_steps=3",
        "pretrain.checkpoint_every=auto",
        "pretrain.spike_factor=3",
        "finetune.spike_window=50",
        "pretrain.asynchronous_checkpoints=false",
        "pretrain.activation_checkpointing=[0, 2]",
        "linear_probe.activation_checkpointing=[3]",
        "pretrain.backend=masked-dense",
        "knn.batch_size=7",
        "evaluate.batch_size=7",
        "tracking.uri=http://mlflow:5000",
        "log_every=3",
    ],
)
def test_how_it_is_computed_is_in_no_key(override: str, shards: Path) -> None:
    assert changed_by(shards, override) == set()


def saved(model: nn.Module, path: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return path


def built(tmp_path: Path, name: str, start: Path | None, *overrides: str) -> ClassifyTask:
    config = everything(*overrides)
    job = made_up_job(config, finetune.recipe_of(config, name), tmp_path, initial_weights=start)
    task = finetune.build_task(job)
    assert isinstance(task, ClassifyTask)
    return task


def test_a_probe_trains_nothing_but_its_head(tmp_path: Path) -> None:
    fcmae = FCMAE.from_size("pocket", image_size=32, patch_size=8, stem_stride=1, decoder_dim=8)
    task = built(tmp_path, "linear-probe", saved(fcmae, tmp_path / "fcmae.safetensors"))
    assert [n for n, p in task.named_parameters() if p.requires_grad] == [
        "model.head.weight",
        "model.head.bias",
    ]
    for name, value in fcmae.encoder.state_dict().items():
        assert torch.equal(task.model.state_dict()[name], value), name
    # The final norm does nothing but normalise.
    assert task.model.norm is not None
    assert (task.model.norm.weight == 1).all()
    assert (task.model.norm.bias == 0).all()


def test_after_the_intermediate_step_the_head_is_new_and_the_norm_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = ConvNeXtV2.from_size("pocket", num_classes=3, stem_stride=1)
    start = saved(before, tmp_path / "model.safetensors")
    torch.manual_seed(1)
    state = built(tmp_path, "finetune", start).model.state_dict()
    torch.manual_seed(1)
    fresh = built(tmp_path, "finetune", None).model.state_dict()
    for name, value in before.state_dict().items():
        source = fresh[name] if name.startswith("head.") else value
        assert torch.equal(state[name], source), name
    assert not torch.equal(fresh["head.weight"], before.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [((), "model.safetensors"), (("intermediate.ema_decay=0.99",), "model-ema.safetensors")],
)
def test_the_average_is_handed_over_if_one_was_kept(
    overrides: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    inputs = {"write": tmp_path / "w", "intermediate": tmp_path / "i"}
    context = StageContext(
        Stage(name="finetune", run=lambda context: {}, settings={}), tmp_path, "", {}, inputs
    )
    assert finetune.initial_weights(everything(*overrides), context) == tmp_path / "i" / name
    alone = StageContext(context.stage, tmp_path, "", {}, {"write": tmp_path / "w"})
    assert finetune.initial_weights(everything(), alone) is None


def test_compiling_keeps_the_names(tmp_path: Path) -> None:
    plain = built(tmp_path, "finetune", None)
    compiled = built(tmp_path, "finetune", None, "finetune.compile=true")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert compiled.model.stage_features is not plain.model.stage_features
    assert hasattr(compiled.model.stage_features, "_torchdynamo_orig_callable")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Images without classes."""
    for split in ("train", "val"):
        folder = tmp_path / "bare" / split
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    return tmp_path / "bare"


def test_the_intermediate_step_needs_its_own_images(bare: Path) -> None:
    config = configured(intermediate=RECIPE)
    with pytest.raises(DataError, match=r"give --set intermediate\.data\.source=DIR"):
        build_stages(config, bare, NO_SESSION, [], {"write-intermediate"})
    with pytest.raises(DataError, match="/no/such/22k does not exist"):
        build_stages(everything(), bare, NO_SESSION, [], {"write-intermediate"})
