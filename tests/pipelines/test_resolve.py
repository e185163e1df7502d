"""Settings: everything that is wrong on one screen, and what is advised really works."""

import re

import pytest

from pipelines.presets import ConfigError, load_preset


def problems(*overrides: str, preset: str = "demo") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_preset(preset, overrides)
    return caught.value.problems


def remaining(*overrides: str) -> list[str]:
    try:
        load_preset("demo", overrides)
    except ConfigError as error:
        return error.problems
    return []


def test_all_problems_at_once() -> None:
    found = "\n".join(
        problems(
            "pretrain.global_batch_sise=128",
            "model.size=big",
            "pretrain.augment.crop_scale=[0, x]",
            "model.image_size=30",
            "cluster.num_workers=3",
            "nonsense",
        )
    )
    for words in (
        "did you mean 'pretrain.global_batch_size'",
        "unknown model size 'big'; choose one of atto",
        "pretrain.augment.crop_scale",
        "24 or 32 would work",
        "3 workers x micro_batch_size 64; global_batch_size 192 would work",
        "expected key=value",
    ):
        assert words in found


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("bla=1", "unknown key 'bla'; there are name, seed"),
        ("pretrain.epochs=0", "pretrain.epochs: input should be greater than 0, got 0"),
        ("pretrain.epochs=many", "pretrain.epochs: input should be a valid integer"),
        ("pretrain.mask_ratio=1", "pretrain.mask_ratio: input should be less than 1"),
        ("pretrain.backend=spconf", "pretrain.backend: input should be 'gather'"),
        ("model.stem_stride=3", "model.stem_stride"),
        ("cluster.zero_stage=4", "cluster.zero_stage"),
        ("pretrain.augment.crop_scale=[0.9, 0.1]", "expected 0 < low <= high"),
        ("finetune.augment.crop_ratio=[0, 1]", "expected 0 < low <= high"),
        ("pretrain.warmup_epochs=99", "longer than the"),
        ("data=3", "data"),
        ("cluster.num_workers.x=3", "cluster.num_workers"),
    ],
)
def test_each_problem_is_named_with_its_place(override: str, words: str) -> None:
    found = problems(override)
    assert any(words in problem for problem in found), found


def test_unknown_preset() -> None:
    assert "did you mean 'imagenet1k'" in problems(preset="imagenet")[0]


@pytest.mark.parametrize(
    "override",
    [
        "model.image_size=30",
        "model.patch_size=12",
        "cluster.num_workers=3",
        "pretrain.micro_batch_size=100",
        "pretrain.global_batch_size=100",
    ],
)
def test_the_advised_value_works(override: str) -> None:
    key = override.partition("=")[0]
    for problem in problems(override):
        advice = re.search(r"(\w+)? ?([\d or]+) would work", problem)
        assert advice is not None, problem
        stage = problem.partition(":")[0]
        name = f"{stage}.{advice[1]}" if advice[1] else key
        for value in advice[2].split(" or "):
            fixed = [f"{name}={value.strip()}"]
            if name != key:
                fixed.insert(0, override)
            # Other problems of the same override may stay; this stage's must be gone.
            assert not any(other.startswith(stage) for other in remaining(*fixed))


def test_values_are_read_as_people_write_them() -> None:
    config = load_preset(
        "demo",
        (
            "pretrain.base_lr=1e-3",
            "pretrain.train_images=null",
            "cluster.use_gpu=true",
            "pretrain.augment.crop_scale=[0.3, 1]",
            "tracking.uri=http://mlflow:5000",
            "data.source=/data/in",
        ),
    )
    assert config.pretrain.base_lr == 1e-3
    assert config.pretrain.train_images is None
    assert config.cluster.use_gpu is True
    assert config.pretrain.augment.crop_scale == (0.3, 1.0)
    assert config.tracking.uri == "http://mlflow:5000"
    assert str(config.data.source) == "/data/in"


def test_imagenet1k_has_the_papers_constants() -> None:
    """Paper, Table 8 (pretraining) and Table 9, column Atto (fine-tuning)."""
    config = load_preset("imagenet1k")
    pretrain, finetune = config.pretrain, config.finetune
    assert (pretrain.base_lr, pretrain.weight_decay, pretrain.betas) == (1.5e-4, 0.05, (0.9, 0.95))
    assert (pretrain.global_batch_size, pretrain.warmup_epochs, pretrain.min_lr) == (4096, 40, 0)
    assert (pretrain.mask_ratio, pretrain.decoder_dim, pretrain.decoder_depth) == (0.6, 512, 1)
    assert (pretrain.norm_pix_loss, pretrain.augment.crop_scale) == (True, (0.2, 1.0))
    assert pretrain.decay_exempt == "all-but-1d"
    assert pretrain.epochs in (800, 1600)
    assert (finetune.base_lr, finetune.weight_decay, finetune.layer_decay) == (2e-4, 0.3, 0.9)
    assert (finetune.epochs, finetune.warmup_epochs, finetune.global_batch_size) == (600, 0, 1024)
    assert (finetune.label_smoothing, finetune.drop_path, finetune.min_lr) == (0.2, 0.1, 1e-6)
    assert (finetune.head_init_scale, finetune.betas) == (0.001, (0.9, 0.999))
    assert finetune.decay_exempt == "all-but-1d-and-grn"
    assert (config.model.size, config.model.image_size, config.model.patch_size) == (
        "atto",
        224,
        32,
    )
