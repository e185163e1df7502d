"""Presets: every resolved value, and the paper's tables read once more, line by line.

golden/NAME.yaml is one preset of each family, whole; golden/differences.yaml is a table of what
the others of the family have instead. `python -m tests.pipelines.config.test_presets` rewrites
them after a preset was changed on purpose; what changes in them belongs into the review.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from convnextv2.recipe.duration import epochs
from convnextv2.recipe.schedule import scaled_lr
from pipelines import cli
from pipelines.config import FinetuneConfig, PipelineConfig, PretrainConfig
from pipelines.presets import ALIASES, PRESETS, load_preset

GOLDEN = Path(__file__).parent / "golden"
SIZES = ["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"]
LARGER = SIZES[3:]  # Those the paper takes to ImageNet-22K.
FAMILIES = {
    "demo",
    *(f"{family}-{size}" for family in ("imagenet1k", "supervised", "linear-probe", "knn")
      for size in SIZES),
    *(f"imagenet1k-{size}-800" for size in SIZES),
    *(f"imagenet22k-{size}{side}" for size in LARGER for side in ("", "-384")),
    "imagenet22k-huge-512",
}  # fmt: skip


# The preset of each family that is there whole, and groups of presets which it is compared with: a
# table each, with a column for every size.
WHOLE = {
    "demo": [],
    "imagenet1k-atto": ["imagenet1k", "imagenet1k-800"],
    "imagenet22k-nano": ["imagenet22k", "imagenet22k-384", "imagenet22k-512"],
    "supervised-atto": ["supervised"],
    "linear-probe-atto": ["linear-probe"],
    "knn-atto": ["knn"],
}
TABLES = GOLDEN / "differences.yaml"
Tables = dict[str, dict[str, list[Any]]]


def resolved(name: str) -> dict[str, Any]:
    return load_preset(name).model_dump(mode="json")


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted names."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        below = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        values |= below or {f"{prefix}{key}": value}
    return values


def named(group: str, size: str) -> str:
    """imagenet1k-800 and atto make imagenet1k-atto-800."""
    family, pixels_or_epochs = re.fullmatch(r"(.*?)(-\d+)?", group).groups("")  # type: ignore[union-attr]
    return f"{family}-{size}{pixels_or_epochs}"


def table(whole: str, group: str) -> dict[str, list[Any]]:
    """The settings that not all presets of a group have as `whole`, with the value of each."""
    presets = [name for name in (named(group, size) for size in SIZES) if name in PRESETS]
    base, columns = flat(resolved(whole)), [flat(resolved(name)) for name in presets]
    rows = {key: [column[key] for column in columns] for key in ("model.size", *base)}
    del rows["name"]
    return {
        key: row
        for key, row in rows.items()
        if key == "model.size" or any(value != base[key] for value in row)
    }


def aligned(rows: dict[str, list[Any]]) -> list[str]:
    """YAML whose columns stand below each other."""
    cells = [[yaml.safe_dump(value).split("\n")[0] for value in row] for row in rows.values()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    names = max(map(len, rows)) + 1
    return [
        f"  {f'{key}:':{names}} [{', '.join(map(str.rjust, row, widths))}]"
        for key, row in zip(rows, cells, strict=True)
    ]


def write_golden() -> None:
    """The files as they would have to be today."""
    for path in GOLDEN.glob("*.yaml"):
        path.unlink()
    lines = [
        "# What python -m tests.pipelines.config.test_presets wrote; it rewrites all files here."
    ]
    for whole, groups in WHOLE.items():
        text = yaml.safe_dump(resolved(whole), sort_keys=False)
        (GOLDEN / f"{whole}.yaml").write_text(text)
        for group in groups:
            lines += [
                "",
                f"{group}: # All else is as in {whole}.yaml.",
                *aligned(table(whole, group)),
            ]
    TABLES.write_text("\n".join(lines) + "\n")


@cache
def golden() -> dict[str, dict[str, Any]]:
    """All settings that the files say every preset has."""
    tables: Tables = yaml.safe_load(TABLES.read_text())
    found = {}
    for whole, groups in WHOLE.items():
        base = flat(yaml.safe_load((GOLDEN / f"{whole}.yaml").read_text()))
        found[whole] = base
        for group in groups:
            rows = tables[group]
            for number, size in enumerate(rows["model.size"]):
                name = named(group, size)
                found[name] = base | {key: row[number] for key, row in rows.items()}
                found[name]["name"] = name
    return found


def test_the_presets_there_are() -> None:
    assert set(PRESETS) == FAMILIES == golden().keys()
    assert {path.stem for path in GOLDEN.iterdir()} == {*WHOLE, TABLES.stem}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_resolves_to_what_it_did(name: str) -> None:
    config = load_preset(name)
    assert flat(config.model_dump(mode="json")) == golden()[name]
    assert config.name == name
    # What settings are merged into can be read back.
    assert PipelineConfig.model_validate(config.model_dump()) == config


def test_an_alias_is_the_preset_it_is_short_for() -> None:
    assert ALIASES == {"imagenet1k": "imagenet1k-atto"}
    assert load_preset("imagenet1k") == load_preset("imagenet1k-atto")


def values(text: str, names: list[str] = SIZES) -> dict[str, float | str]:
    """A line of a table: one value for each size."""
    read = [float(word) if word[0].isdigit() else word for word in text.split()]
    return dict(zip(names, read, strict=True))


# ImageNet-1K fine-tuning, Tables 9-11 of the paper and its TRAINING.md: A F P N T B L H. Rates are
# those of batch 1024.
FINE_TUNING = {
    "lr": values("8e-4 8e-4 8e-4 8e-4 3.2e-3 2.5e-3 2.5e-3 5e-3"),
    "weight_decay": values("0.3 0.05 0.3 0.3 0.05 0.05 0.05 0.05"),
    "layer_decay": values("0.9 0.9 0.9 0.9 0.9 0.6 0.6 0.75"),
    "layer_decay_groups": values("single single single single single group group single"),
    "epochs": values("600 600 600 600 300 100 100 50"),
    "warmup": values("0 0 0 0 40 20 20 10"),
    "label_smoothing": values("0.2 0.2 0.2 0.2 0.1 0.1 0.1 0.1"),
    "mixup": values("0 0.3 0.3 0.5 0.8 0.8 0.8 0.8"),
    "cutmix": values("0 0.3 0.3 0.5 1 1 1 1"),
    "drop_path": values("0.1 0 0 0.1 0.2 0.1 0.2 0.3"),
}
# Fine-tuning on ImageNet-22K and then on 1K, Tables 12 and 13: N T B L H.
ON_22K = {
    "lr": values("4e-3 4e-3 4e-3 4e-3 4e-3", LARGER),
    "weight_decay": values("0.05 0.05 0.05 0.05 0.05", LARGER),
    "layer_decay": values("0.9 0.9 0.8 0.8 0.8", LARGER),
    "layer_decay_groups": values("single single group group single", LARGER),
    "epochs": values("90 90 90 90 90", LARGER),
    "warmup": values("5 5 5 5 5", LARGER),
    "label_smoothing": values("0.1 0.1 0.1 0.1 0.1", LARGER),
    "mixup": values("0.8 0.8 0.8 0.8 0.8", LARGER),
    "cutmix": values("1 1 1 1 1", LARGER),
    "drop_path": values("0 0 0.1 0.1 0.3", LARGER),
}
ON_1K = {
    "lr": values("5e-5 5e-5 5e-5 5e-5 5e-5", LARGER),
    "weight_decay": values("1e-8 1e-8 1e-8 1e-8 1e-8", LARGER),
    "layer_decay": values("0.9 0.9 0.8 0.8 0.85", LARGER),
    "layer_decay_groups": values("single single group group single", LARGER),
    "epochs": values("90 90 30 30 30", LARGER),
    "warmup": values("0 0 0 0 0", LARGER),
    "label_smoothing": values("0.1 0.1 0.1 0.1 0.1", LARGER),
    "mixup": values("0 0 0 0 0", LARGER),
    "cutmix": values("0 0 0 0 0", LARGER),
    "drop_path": values("0.1 0.1 0.2 0.3 0.5", LARGER),
}
# From scratch; T, B, L: Table 5 of the ConvNeXt V1 paper.
SUPERVISED = {
    "lr": values("4e-3 4e-3 4e-3 4e-3 4e-3 4e-3 4e-3 4e-3"),
    "weight_decay": values("0.05 0.05 0.05 0.05 0.05 0.05 0.05 0.05"),
    "layer_decay": values("1 1 1 1 1 1 1 1"),
    "layer_decay_groups": values("single single single single single single single single"),
    "epochs": values("300 300 300 300 300 300 300 300"),
    "warmup": values("20 20 20 20 20 20 20 20"),
    "label_smoothing": values("0.2 0.2 0.2 0.2 0.1 0.1 0.1 0.1"),
    "mixup": values("0 0.3 0.3 0.5 0.8 0.8 0.8 0.8"),
    "cutmix": values("0 0.3 0.3 0.5 1 1 1 1"),
    "drop_path": values("0.1 0 0 0.1 0.1 0.5 0.5 0.5"),
}


def holds_the_table(recipe: Any, table: dict[str, dict[str, float | str]], size: str) -> None:
    """The recipe has the table's column for the size, and what all fine-tuning has in common."""
    assert isinstance(recipe, FinetuneConfig)
    found = {
        "lr": pytest.approx(scaled_lr(recipe.base_lr, recipe.global_batch_size)),
        "epochs": recipe.duration.amount,
        "warmup": recipe.warmup.amount,
        "mixup": recipe.augment.mixup,
        "cutmix": recipe.augment.cutmix,
    }
    for line, row in table.items():
        assert row[size] == (found[line] if line in found else getattr(recipe, line)), line
    assert recipe.duration.unit == recipe.warmup.unit == "epochs"
    assert (recipe.betas, recipe.min_lr, recipe.grad_clip) == ((0.9, 0.999), 1e-6, 0.0)
    assert (recipe.decay_exempt, recipe.trainable) == ("all-but-1d-and-grn", "all")
    augment = recipe.augment
    assert (augment.rand_augment, augment.rand_augment_std, augment.random_erasing) == (
        9,
        0.5,
        0.25,
    )
    assert (augment.crop_scale, augment.crop_ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert (augment.flip, augment.color_jitter, augment.interpolation) == (0.5, 0.0, "bicubic")


def holds_table_8(recipe: PretrainConfig | None, length: int) -> None:
    """FCMAE as in the paper's Table 8 and its code's arguments."""
    assert recipe is not None
    assert (recipe.duration, recipe.warmup) == (epochs(length), epochs(40))
    assert recipe.global_batch_size == 4096
    assert scaled_lr(recipe.base_lr, recipe.global_batch_size) == pytest.approx(2.4e-3)
    assert (recipe.betas, recipe.weight_decay, recipe.min_lr) == ((0.9, 0.95), 0.05, 0.0)
    assert (recipe.grad_clip, recipe.decay_exempt) == (0.0, "all-but-1d")
    assert (recipe.augment.crop_scale, recipe.augment.flip) == ((0.2, 1.0), 0.5)
    assert recipe.augment.rand_augment == recipe.augment.random_erasing == 0
    assert (recipe.mask_ratio, recipe.decoder) == (0.6, "convnext")
    assert (recipe.decoder_dim, recipe.decoder_depth, recipe.norm_pix_loss) == (512, 1, True)
    assert recipe.ema_decay is None


def holds_the_geometry(name: str, size: str) -> None:
    model = load_preset(name).model
    assert (model.size, model.image_size, model.patch_size, model.stem_stride) == (size, 224, 32, 4)
    assert load_preset(name).evaluate.crop == 0.875


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("suffix", "length"), [("", 1600), ("-800", 800)])
def test_imagenet1k(size: str, suffix: str, length: int) -> None:
    config = load_preset(f"imagenet1k-{size}{suffix}")
    holds_the_geometry(config.name, size)
    holds_table_8(config.pretrain, length)
    holds_the_table(config.finetune, FINE_TUNING, size)
    assert config.finetune is not None
    assert config.finetune.global_batch_size == 1024
    assert (config.finetune.ema_decay, config.finetune.head_init_scale) == (0.9999, 0.001)
    assert config.finetune.image_size is None
    assert config.intermediate is config.linear_probe is config.knn is None


@pytest.mark.parametrize(
    ("size", "side"), [(size, side) for side in (224, 384) for size in LARGER] + [("huge", 512)]
)
def test_imagenet22k(size: str, side: int) -> None:
    config = load_preset(f"imagenet22k-{size}" + (f"-{side}" if side > 224 else ""))
    holds_the_geometry(config.name, size)
    holds_table_8(config.pretrain, 1600)
    holds_the_table(config.intermediate, ON_22K, size)
    holds_the_table(config.finetune, ON_1K, size)
    assert config.intermediate is not None
    assert config.finetune is not None
    assert (config.intermediate.global_batch_size, config.finetune.global_batch_size) == (4096, 512)
    assert config.intermediate.head_init_scale == config.finetune.head_init_scale == 0.001
    assert config.intermediate.ema_decay is None
    assert config.finetune.ema_decay == (None if size == "huge" else 0.9999)
    assert config.intermediate.image_size is None
    assert config.finetune.image_size == (None if side == 224 else side)


@pytest.mark.parametrize("size", SIZES)
def test_supervised(size: str) -> None:
    config = load_preset(f"supervised-{size}")
    holds_the_geometry(config.name, size)
    assert config.pretrain is None
    holds_the_table(config.finetune, SUPERVISED, size)
    assert config.finetune is not None
    assert config.finetune.global_batch_size == 4096
    assert (config.finetune.ema_decay, config.finetune.head_init_scale) == (0.9999, 1.0)


@pytest.mark.parametrize("size", SIZES)
def test_features_are_judged_behind_the_same_pretraining(size: str) -> None:
    probe, neighbours = load_preset(f"linear-probe-{size}"), load_preset(f"knn-{size}")
    assert probe.pretrain == neighbours.pretrain == load_preset(f"imagenet1k-{size}").pretrain
    assert probe.finetune is neighbours.finetune is None
    recipe, knn = probe.linear_probe, neighbours.knn
    assert recipe is not None
    assert knn is not None
    assert (recipe.trainable, recipe.weight_decay, recipe.head_init_scale) == ("head", 0.0, 1.0)
    assert (recipe.duration, recipe.warmup) == (epochs(90), epochs(10))
    assert recipe.augment.rand_augment == recipe.augment.mixup == recipe.label_smoothing == 0
    assert (knn.k, knn.temperature) == (20, 0.07)


@pytest.mark.parametrize("name", sorted(FAMILIES - {"demo"}))
def test_batches_fit_eight_gpus_and_sixty_four(name: str) -> None:
    config = load_preset(name, ["cluster.num_workers=8"])
    small = []
    for section in ("pretrain", "intermediate", "finetune", "linear_probe"):
        recipe = getattr(config, section)
        if recipe is not None:
            per_worker = recipe.global_batch_size // 64
            small.append(f"{section}.micro_batch_size={min(per_worker, recipe.micro_batch_size)}")
    load_preset(name, ["cluster.num_workers=64", *small])


# Top-1 as published: Table 14 (1600 epochs; V2 supervised), Tables 3 and 4 (800), Table 15.
PUBLISHED = {
    **{f"imagenet1k-{size}": top1 for size, top1 in
       values("76.7 78.5 80.3 81.9 83.0 84.9 85.8 86.3").items()},
    **{f"imagenet1k-{size}-800": top1 for size, top1 in
       values("84.6 85.6 85.8", SIZES[5:]).items()},
    **{f"supervised-{size}": top1 for size, top1 in
       values("76.2 78.0 79.7 81.2 82.5 84.3 84.5", SIZES[:7]).items()},
    **{f"imagenet22k-{size}": top1 for size, top1 in
       values("82.1 83.9 86.8 87.3", LARGER[:4]).items()},
    **{f"imagenet22k-{size}-384": top1 for size, top1 in
       values("83.4 85.1 87.7 88.2 88.7", LARGER).items()},
    "imagenet22k-huge-512": 88.9,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_is_said_to_be_published_is(name: str) -> None:
    text = PRESETS[name].published
    if name in PUBLISHED:
        assert float(text.split()[0]) == PUBLISHED[name]
    else:
        assert text.startswith("none")
    counted = re.search(r"\((\d+\.\d+) by timm\)", text)
    assert counted is None or abs(float(counted[1]) - float(text.split()[0])) < 0.1
    if name != "demo":
        assert PRESETS[name].cost == "not run yet"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_command_of_a_preset_runs_it(name: str) -> None:
    options = cli.build_parser().parse_args(PRESETS[name].command.split()[1:])
    assert options.preset == name
    load_preset(name, options.set)


def test_the_list_has_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == list(PRESETS)
    assert re.search(
        r"^imagenet1k-base +FCMAE, .*Base +84\.9 .* not run yet$", "\n".join(lines), re.M
    )
    assert lines[-1] == "imagenet1k is short for imagenet1k-atto"
    assert cli.main(["presets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed] == list(PRESETS)
    facts = {"name", "what", "published", "published_top1_percent", "cost", "command"}
    assert set(listed[0]) == facts
    percents = {each["name"]: each["published_top1_percent"] for each in listed}
    assert (percents["demo"], percents["imagenet1k-atto"], percents["knn-atto"]) == (
        None,
        76.7,
        None,
    )


@pytest.mark.parametrize("name", ["imagenet1k-base", "imagenet1k", "knn-huge"])
def test_the_page_of_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    preset = PRESETS[ALIASES.get(name, name)]
    assert cli.main(["presets", name]) == 0
    out = capsys.readouterr().out
    for words in (preset.what, preset.published, preset.command):
        assert words in out
    assert re.sub("^# ?", "", out, flags=re.MULTILINE).count(preset.about.strip()) == 1
    settings = yaml.safe_load(out)
    assert settings == load_preset(name).model_dump(mode="json")
    assert cli.main(["presets", name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == settings
    assert (shown["name"], shown["about"]) == (preset.name, preset.about)


def test_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", "imagenet22k-hug"]) == 1
    assert "did you mean 'imagenet22k-huge'?" in capsys.readouterr().err


if __name__ == "__main__":
    write_golden()
