"""A configuration as a file: read back as it was, and what is said of one that is wrong."""

from pathlib import Path

import pytest
import yaml

from pipelines.config.file import as_yaml
from pipelines.config.resolve import ConfigError, resolve_file
from pipelines.presets import PRESETS, load_preset

# A recipe by hand: what has no default, and no more.
SHORT = """
name: mine
model: {size: atto}
pretrain: {duration: 8, global_batch_size: 64, micro_batch_size: 64, base_lr: 1e-3}
"""


def problems(path: Path, text: str, *overrides: str) -> list[str]:
    path.write_text(text)
    try:
        resolve_file(path, overrides)
    except ConfigError as error:
        return error.problems
    return []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my.yaml"


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_is_read_back_as_it_was(name: str, path: Path) -> None:
    config = load_preset(name, ["data.source=/data/Füchse", "seed=7"])
    path.write_text(as_yaml(config))
    assert resolve_file(path) == config
    assert resolve_file(path, ["seed=8"]) == config.model_copy(update={"seed": 8})


def test_what_a_file_leaves_out_has_its_default(path: Path) -> None:
    path.write_text(SHORT)
    config = resolve_file(path)
    assert config.pretrain is not None
    assert (config.pretrain.base_lr, config.pretrain.mask_ratio) == (1e-3, 0.6)
    assert (config.finetune, config.data.shuffle, config.cluster.num_workers) == (None, "random", 1)


def test_all_that_is_wrong_is_told_together(path: Path) -> None:
    settings = yaml.safe_load(as_yaml(load_preset("demo")))
    settings["finetune"]["control"] = settings["finetune"].pop("scratch_baseline")
    settings["data"]["sorce"] = "/data"
    settings["evaluate"]["crop"] = 2
    settings["pretrain"]["micro_batch_size"] = 48
    assert problems(path, yaml.safe_dump(settings), "log_every=0", "seed") == [
        "--set seed: expected key=value, for example seed=1",
        "log_every: input should be greater than 0, got 0",
        "unknown key 'data.sorce'; did you mean 'data.source'?",
        "unknown key 'finetune.control'; it is called finetune.scratch_baseline now",
        "evaluate.crop: input should be less than or equal to 1, got 2",
        "pretrain: global_batch_size 128 does not divide into 2 workers x micro_batch_size 48; "
        "micro_batch_size 32 or 16 or 8 would work",
    ]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("name: mine", "", ["name: has no default and must be given"]),
        (", base_lr: 1e-3", "", ["pretrain.base_lr: has no default and must be given"]),
        # Told once, though without the wrong value it is missing.
        (
            "1e-3",
            "much",
            [
                "pretrain.base_lr: input should be a valid number, unable to parse string as a "
                "number, got 'much'"
            ],
        ),
    ],
)
def test_what_has_no_default_must_be_there(
    before: str, after: str, words: list[str], path: Path
) -> None:
    assert problems(path, SHORT) == []
    assert problems(path, SHORT.replace(before, after)) == words


@pytest.mark.parametrize(
    ("added", "where"),
    [
        ("name: other\n", "line 5: name is already on line 2"),
        ("data:\n  source: a\n  source: b\n", "line 7: data.source is already on line 6"),
        ("data: {source: a}\ndata: {source: b}\n", "line 6: data is already on line 5"),
    ],
)
def test_a_key_given_twice_is_refused(added: str, where: str, path: Path) -> None:
    with pytest.raises(ValueError, match=f"^--config {path}: {where}; keep one of each$"):
        problems(path, SHORT + added)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"a: [1", "is no YAML: .* line 1"),
        (b"\xff\xfe\x00", "is no YAML"),
        (b"", "expected lines of `key: value`"),
        (b"- demo", "expected lines of `key: value`"),
    ],
)
def test_a_file_that_is_no_configuration(content: bytes | None, words: str, path: Path) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^--config {path}:? {words}"):
        resolve_file(path)
