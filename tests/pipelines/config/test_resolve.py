"""Settings: how overrides are read, and what every wrong one is told."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from convnextv2.recipe.duration import steps
from convnextv2.sizes import DECODER_UNITS, SIZES, TABLE_1
from pipelines.config import PipelineConfig, PretrainConfig
from pipelines.config.hints import ELSEWHERE, RENAMED
from pipelines.presets import ConfigError, load_preset

BACKENDS = get_args(PretrainConfig.model_fields["backend"].annotation)
SECTIONS = (
    "name, seed, log_every, data, model, pretrain, intermediate, finetune, linear_probe, knn, "
    "evaluate, cluster, tracking"
)
DURATION = "expected a duration, like 8 epochs, 5000 steps, 1000000 images or 5%"


def problems(*overrides: str, preset: str = "demo") -> list[str]:
    try:
        load_preset(preset, overrides)
    except ConfigError as error:
        return error.problems
    return []


# Override and the whole message. Each is wrong in its own field, so they can also be given at once.
WRONG = {
    "seed": "--set seed: expected key=value, for example seed=1",
    "pretrain.durations=3": "unknown key 'pretrain.durations'; did you mean 'pretrain.duration'?",
    "pretrian.duration=3": "unknown key 'pretrian'; did you mean 'pretrain'?",
    "evaluate.crop_size.x=1": "unknown key 'evaluate.crop_size'; did you mean 'evaluate.crop'?",
    "zzz.y=1": f"unknown key 'zzz'; there are {SECTIONS}",
    "=1": f"unknown key ''; there are {SECTIONS}",
    "pretrain.duration=many": f"pretrain.duration: {DURATION}, got 'many'",
    "pretrain.warmup=120%": "pretrain.warmup: 120% is more than the whole training; at most 100% "
    "would work, got '120%'",
    "finetune.duration=0": "finetune.duration: more than nothing is needed, got 0",
    "finetune.checkpoint_every=1.5": "finetune.checkpoint_every: steps are whole numbers, 1.5 is "
    "not; auto would work, too, got 1.5",
    "pretrain.checkpoint_every=often": f"pretrain.checkpoint_every: {DURATION}; auto would work, "
    "too, got 'often'",
    "pretrain.spike_factor=1": "pretrain.spike_factor: input should be greater than 1, got 1",
    "finetune.spike_factor=twice": "finetune.spike_factor: input should be a valid number, unable "
    "to parse string as a number, got 'twice'",
    "pretrain.spike_window=0": "pretrain.spike_window: more than nothing is needed, got 0",
    "finetune.spike_window=wide": f"finetune.spike_window: {DURATION}, got 'wide'",
    "pretrain.mask_ratio=1": "pretrain.mask_ratio: input should be less than 1, got 1",
    "finetune.base_lr=.inf": "finetune.base_lr: input should be a finite number, got inf",
    "pretrain.backend=gathr": "pretrain.backend: input should be "
    f"{', '.join(map(repr, BACKENDS[:-1]))} or {BACKENDS[-1]!r}, got 'gathr'",
    "pretrain.decoder=vit": "pretrain.decoder: input should be 'convnext', 'unet', 'unet-noskip' "
    "or 'transformer', got 'vit'",
    "pretrain.activation_checkpointing=[4]": "pretrain.activation_checkpointing: input should be "
    "less than or equal to 3, got 4",
    "model.size=small": "model.size: unknown model size 'small'; choose one of "
    f"{', '.join(SIZES)}, got 'small'",
    "model.stem_stride=3": "model.stem_stride: input should be 1, 2 or 4, got 3",
    "pretrain.betas=[0.9]": "pretrain.betas: field required, got [0.9]",
    "finetune.label_smoothing=null": "finetune.label_smoothing: input should be a valid number, "
    "got None",
    "log_every.often=1": "log_every: input should be a valid integer, got {'often': 1}",
    "cluster=5": "cluster: input should be a valid dictionary or instance of ClusterConfig, got 5",
    "pretrain.augment.crop_scale=[0.9, 0.5]": "pretrain.augment.crop_scale: expected "
    "0 < low <= high, got 0.9, 0.5",
    "finetune.augment.crop_ratio=[0, 2]": "finetune.augment.crop_ratio: expected "
    "0 < low <= high, got 0.0, 2.0",
    "finetune.warmup=999": "finetune.warmup: 999 epochs is longer than the {duration} of training",
    "model.patch_size=12": "model.patch_size: 12 is no multiple of the total stride 8 "
    "(8 x stem_stride); 8 or 16 would work",
    "finetune.micro_batch_size=12": "finetune: global_batch_size 64 does not divide into 2 workers "
    "x micro_batch_size 12; micro_batch_size 8 or 4 or 2 would work",
}


def expected(override: str) -> str:
    demo = load_preset("demo")
    assert demo.finetune is not None
    return WRONG[override].replace("{duration}", str(demo.finetune.duration))


@pytest.mark.parametrize("override", WRONG)
def test_every_kind_of_error_says_what_is_wrong(override: str) -> None:
    assert problems(override) == [expected(override)]


def test_all_errors_are_told_at_once() -> None:
    assert sorted(problems(*WRONG)) == sorted(map(expected, WRONG))


def settings_of(section: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of all settings there can be, and of their sections."""
    names = set()
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        names.add(f"{prefix}{name}")
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names |= settings_of(kind, f"{prefix}{name}.")
    return names


@pytest.mark.parametrize("old", RENAMED)
def test_a_setting_that_was_renamed_is_told_by_its_new_name(old: str) -> None:
    there = settings_of(PipelineConfig)
    assert not [name for name in there if f".{name}".endswith(f".{old}")]
    first, *others = RENAMED[old]
    above = [name.removesuffix(first) for name in there if f".{name}".endswith(f".{first}")]
    assert above
    for prefix in above:
        renamed = [f"{prefix}{end}" for end in (first, *others)]
        assert set(renamed) <= there
        words = f"unknown key '{prefix}{old}'; it is called {' or '.join(renamed)} now"
        assert words in problems(f"{prefix}{old}=1", preset="imagenet22k-nano")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_from_another_program_is_told_by_ours(name: str) -> None:
    there = settings_of(PipelineConfig)
    ours = ELSEWHERE[name]
    known = sorted(each for each in there if f".{each}".endswith(f".{ours}"))
    assert known
    foreign = {f"{each.removesuffix(ours)}{name}": each for each in known}
    wrong = {key: each for key, each in foreign.items() if key not in there}
    told = problems(*(f"{key}=1" for key in wrong), preset="imagenet22k-nano")
    for key, setting in wrong.items():
        assert f"unknown key {key!r}; did you mean {setting!r}?" in told


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pretrain.image_size=1", "did you mean 'model.image_size' or 'intermediate."),
        ("pretrain.patch_size=1", "did you mean 'model.patch_size'?"),
        ("stage=1", "did you mean 'cluster.zero.stage'?"),
        ("workers=2", "or 'cluster.num_workers'?"),
    ],
)
def test_a_setting_of_another_section_is_told_by_where_it_is(override: str, words: str) -> None:
    (problem,) = problems(override)
    assert words in problem


def test_a_name_that_another_section_had_is_just_unknown() -> None:
    (problem,) = problems("model.control=1")
    assert problem.startswith("unknown key 'model.control'; there are ")


SPIKES = ("pretrain.spike_factor=3", "finetune.spike_factor=3")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("pretrain.duration=90 steps",), {"pretrain": "100 steps|90 steps"}),
        (("finetune.spike_window=60%",), {"finetune": "60%|{duration}"}),
        (
            ("pretrain.duration=1280 images",),
            {"pretrain": "100 steps|1280 images"},
        ),
        (("pretrain.spike_window=1000 epochs",), {"pretrain": "1000 epochs|{duration}"}),
        (("pretrain.duration=101 steps", "finetune.spike_window=49%"), {}),
    ],
)
def test_a_window_leaves_something_to_train(
    overrides: tuple[str, ...], expected: dict[str, str]
) -> None:
    preset = load_preset("demo").recipes()
    few = ("pretrain.warmup=0", *overrides)
    assert problems(*few) == [], "nothing is looked for"
    assert problems(*few, *SPIKES) == [
        f"{name}.spike_window: {window} before a spike and as many from it on leave nothing of the "
        f"{duration.format(duration=preset[name].duration)} of training; 1% would work"
        for name, (window, duration) in ((k, v.split("|")) for k, v in expected.items())
    ]
    assert problems(*few, *SPIKES, *(f"{name}.spike_window=1%" for name in expected)) == []


def test_a_spike_is_a_failure_that_must_be_allowed() -> None:
    found = problems(*SPIKES, "cluster.max_failures=0")
    assert [problem.partition(":")[0] for problem in found] == [
        "pretrain.spike_factor",
        "finetune.spike_factor",
    ]
    assert all("cluster.max_failures=0 forbids; 1 or more would work" in each for each in found)
    assert problems("cluster.max_failures=0") == []


def test_an_unknown_preset_names_the_nearest() -> None:
    assert problems(preset="imagenet") == ["unknown preset 'imagenet'; did you mean 'imagenet1k'?"]
    assert problems(preset="imagenet1k-basse") == [
        "unknown preset 'imagenet1k-basse'; did you mean 'imagenet1k-base'?"
    ]
    assert problems(preset="x") == ["unknown preset 'x'; convnextv2 presets lists them all"]


WAY_OUT = re.compile(
    r"(?P<section>[\w.]+): .*; (?:(?P<key>[a-z_]+) )?(?P<values>\d+(?: or \d+)*) would work"
    r"(?: with (?P<other>[a-z_.]+) (?P<others>\d+(?: or \d+)*))?"
)


def advised(problem: str) -> list[list[str]]:
    """Overrides for every way out that a message offers."""
    match = WAY_OUT.fullmatch(problem)
    assert match, problem
    key = f"{match['section']}.{match['key']}" if match["key"] else match["section"]
    ways = [[f"{key}={value}"] for value in match["values"].split(" or ")]
    if match["other"]:
        seconds = [f"{match['other']}={value}" for value in match["others"].split(" or ")]
        ways = [[*way, second] for way in ways for second in seconds]
    return ways


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.patch_size=12"],
        ["model.patch_size=12", "model.image_size=48"],
        ["model.patch_size=100", "model.image_size=48"],
        ["model.patch_size=3", "model.image_size=50"],
        ["model.patch_size=40", "model.stem_stride=4", "model.image_size=224"],
        ["model.patch_size=40", "model.stem_stride=4", "model.image_size=230"],
        ["model.image_size=50"],
        ["model.image_size=3"],
        ["cluster.num_workers=3"],
        ["cluster.num_workers=200"],
        ["pretrain.micro_batch_size=48"],
        ["finetune.global_batch_size=7", "cluster.num_workers=1"],
        ["pretrain.global_batch_size=15", "finetune.micro_batch_size=5"],
    ],
)
def test_each_value_that_would_work_does(overrides: list[str]) -> None:
    found = problems(*overrides)
    assert found
    for problem in found:
        for way in advised(problem):
            left = problems(*overrides, *way)
            assert set(left) == set(found) - {problem}, way


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("pretrain.base_lr=1e-3", 1e-3),
        ("pretrain.base_lr=1E-4", 1e-4),
        ("pretrain.base_lr=2", 2.0),
        ("pretrain.betas=[0.8, 0.99]", (0.8, 0.99)),
        ("pretrain.norm_pix_loss=no", False),
        ("pretrain.train_images=null", None),
        ("pretrain.checkpoint_every=auto", "auto"),
        ("pretrain.checkpoint_every=250", steps(250)),
        ("tracking.experiment='1e-3'", "1e-3"),
        ("tracking.experiment=a=b", "a=b"),
        ("tracking.experiment=[", "["),
        ("tracking.uri=http://mlflow:5000", "http://mlflow:5000"),
        ("data.source=/data/my photos", Path("/data/my photos")),
        ('data.source="2024"', Path("2024")),
    ],
)
def test_values_are_read_as_people_mean_them(override: str, value: Any) -> None:
    config: Any = load_preset("demo", [override])
    for name in override.partition("=")[0].split("."):
        config = getattr(config, name)
    assert config == value
    assert type(config) is type(value)


def test_an_override_changes_its_field_and_no_other() -> None:
    before, after = (load_preset("demo", more).model_dump() for more in ([], ["model.size=atto"]))
    assert after.pop("model") == {**before.pop("model"), "size": "atto"}
    assert after == before


@pytest.mark.parametrize(
    ("decoder", "unit", "would"), [("unet", 8, "96 or 104"), ("transformer", 32, "96 or 128")]
)
def test_a_width_the_decoder_cannot_have_is_refused(decoder: str, unit: int, would: str) -> None:
    assert problems(f"pretrain.decoder={decoder}", "pretrain.decoder_dim=100") == [
        f"pretrain.decoder_dim: 100 is no multiple of {unit}, as decoder {decoder!r} needs; "
        f"{would} would work"
    ]


@pytest.mark.parametrize("row", TABLE_1)
def test_every_row_of_table_1_can_be_set(row: str) -> None:
    overrides = [f"pretrain.{field}={value}" for field, value in TABLE_1[row].items()]
    recipe = load_preset("demo", overrides).pretrain
    assert recipe is not None
    assert {field: getattr(recipe, field) for field in TABLE_1[row]} == TABLE_1[row]


def test_the_configuration_knows_the_decoders_there_are() -> None:
    assert get_args(PretrainConfig.model_fields["decoder"].annotation) == tuple(DECODER_UNITS)


def test_the_last_of_two_overrides_counts() -> None:
    assert load_preset("demo", ["seed=1", "seed=2"]).seed == 2
