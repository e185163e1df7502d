"""`pretrain.weights`, `finetune.weights` and so on: what is checked, what is in a stage's key."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.weights import Evaluation, Metadata, WeightsError, encoder_of, inspect, write
from pipelines.config.resolve import ConfigError
from pipelines.graph import Stage
from pipelines.graph.kinds import KINDS
from pipelines.graph.outline import outline
from pipelines.presets import load_preset
from pipelines.report.tables import MODELS
from pipelines.stages import build_stages, finetune, pretrain, report
from pipelines.training.job import TrainJob
from pipelines.training.weights.given import COPY, Given, content_digest
from tests.convnextv2.data.fixtures.pictures import CLASSES
from tests.convnextv2.weights.test_weights_dialects import assert_same
from tests.pipelines.commands.user import randomised
from tests.pipelines.stages.jobs import made_up_job
from tests.pipelines.stages.test_stages import NO_SESSION, PROBE, configured, shards

__all__ = ["shards"]  # The fixture.

FROM_FILES = ("pretrain=null", "finetune.scratch_baseline=false")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo's model, with the classes of the made-up images, counted otherwise."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model = randomised(ConvNeXtV2.from_size("pocket", num_classes=3, stem_stride=1))
    known = Metadata(classes=CLASSES[::-1], evaluation=Evaluation.usual(32))
    save_file(model.state_dict(), path, metadata=known.as_entries())
    return path


def problems(*overrides: str) -> list[str]:
    try:
        load_preset("demo", overrides)
    except ConfigError as error:
        return error.problems
    return []


def test_weights_that_fit_are_no_problem(classifier: Path) -> None:
    assert problems(*FROM_FILES, f"finetune.weights={classifier}") == []
    assert problems(f"pretrain.weights={classifier}") == []


def test_weights_of_other_channels_fit_a_model_of_as_many(tmp_path: Path) -> None:
    path = tmp_path / "five.safetensors"
    model = ConvNeXtV2.from_size("pocket", num_classes=0, stem_stride=1, in_channels=5)
    save_file(model.state_dict(), path)
    named = (*FROM_FILES, f"finetune.weights={path}")
    assert problems(*named, "model.in_channels=5") == []
    assert problems(*named) == [
        f"finetune.weights: {path} takes images of 5 channels, and model.in_channels is 3; "
        "model.in_channels=5 would work"
    ]


def test_all_that_is_wrong_with_weights_is_told_at_once(tmp_path: Path) -> None:
    other = tmp_path / "atto.pt"
    torch.save(ConvNeXtV2.from_size("atto", num_classes=0, in_channels=4).state_dict(), other)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    found = problems(
        "pretrain.weights=/no/such/file.pth", f"finetune.weights={other}",
        f"linear_probe.weights={tmp_path / 'bad.pth'}", "linear_probe.trainable=head",
        "linear_probe.duration=1", "linear_probe.base_lr=1", "linear_probe.global_batch_size=8",
        "linear_probe.micro_batch_size=4", "finetune.warmup=9999 epochs",
    )  # fmt: skip
    assert found == [
        *(problem for problem in found if problem.startswith("finetune.warmup: ")),
        *(
            f"{name}.weights: it starts from what pretrain trains already; set pretrain=null, or "
            "give them to pretrain.weights"
            for name in ("finetune", "linear_probe")
        ),
        "pretrain.weights: weight file /no/such/file.pth does not exist",
        f"finetune.weights: {other} is atto, and model.size is pocket; model.size=atto would work",
        f"finetune.weights: {other} has a stem of stride 4, and model.stem_stride is 1; "
        "model.stem_stride=4 would work",
        f"finetune.weights: {other} takes images of 4 channels, and model.in_channels is 3; "
        "model.in_channels=4 would work",
        f"linear_probe.weights: {tmp_path / 'bad.pth'} is neither a safetensors nor a PyTorch file",
    ]
    assert len(found) == 8


def test_without_pretraining_a_probe_and_knn_need_weights(classifier: Path) -> None:
    told = problems(*FROM_FILES, "knn={}")
    assert told == [
        "knn: looks at a pretrained encoder, and pretrain is not set; knn.weights=FILE would work"
    ]
    alone = ("pretrain=null", "finetune=null", f"knn={{weights: {classifier}}}")
    assert problems(*alone) == []
    assert list(outline(load_preset("demo", alone))) == ["write", "knn", "report"]


def test_a_control_beside_given_weights_starts_from_scratch(classifier: Path, shards: Path) -> None:
    stages = stages_of(shards, "pretrain=null", f"finetune.weights={classifier}")
    assert "weights" in stages["finetune"].settings
    assert "weights" not in stages["finetune-scratch"].settings


@pytest.mark.parametrize(
    ("overrides", "models", "words"),
    [
        ((), ("pretrained", "from scratch"), "FCMAE pretraining"),
        (
            ("pretrain=null", "finetune.weights=FILE"),
            ("pretrained", "from scratch"),
            "the given pretraining",
        ),
        (("pretrain=null", "finetune.scratch_baseline=false"), ("from scratch",), ""),
        (("pretrain=null", "finetune=null", "knn={weights: FILE}"), (), "the given pretraining"),
    ],
)
def test_the_report_tells_a_model_of_given_weights_from_one_from_scratch(
    overrides: tuple[str, ...], models: tuple[str, ...], words: str, classifier: Path
) -> None:
    config = load_preset("demo", [each.replace("FILE", str(classifier)) for each in overrides])
    judged = [name for name in ("evaluate", "evaluate-scratch") if name in outline(config)]
    assert tuple(MODELS[report.model_of(config, name)] for name in judged) == models
    assert report.pretraining_of(config, outline(config)) == words


def stages_of(shards: Path, *overrides: str) -> dict[str, Stage]:
    config = configured(*overrides, linear_probe=None)
    stages = build_stages(config, shards, NO_SESSION, [], set(outline(config)))
    return {stage.name: stage for stage in stages}


@pytest.mark.slow
def test_the_key_has_what_is_in_the_file_not_where_it_lies(
    classifier: Path, shards: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copy(classifier, tmp_path / "elsewhere.safetensors"))
    changed = tmp_path / "changed.safetensors"
    write({n: v + 1 for n, v in inspect(classifier).state.items()}, changed, to="official")
    settings = [
        stages_of(shards, *FROM_FILES, f"finetune.weights={path}")["finetune"].settings
        for path in (classifier, moved, changed)
    ]
    assert settings[0] == settings[1]
    assert {name for name in settings[0] if settings[0][name] != settings[2][name]} == {"weights"}


def test_a_folders_digest_is_that_of_all_its_files(tmp_path: Path) -> None:
    state = ConvNeXtV2.from_size("pocket", num_classes=0).state_dict()
    write(state, tmp_path / "one", to="hf")
    write(state, tmp_path / "two", to="hf")
    assert content_digest(tmp_path / "one") == content_digest(tmp_path / "two")
    write({name: value + 1 for name, value in state.items()}, tmp_path / "three", to="hf")
    assert content_digest(tmp_path / "one") != content_digest(tmp_path / "three")


def test_paths_may_be_relative_to_the_current_folder(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classifier.parents[1])
    file = classifier.relative_to(Path.cwd())
    assert content_digest(file) == content_digest(file.parent) == content_digest(classifier)


def test_a_stage_gets_a_copy_under_our_names(tmp_path: Path) -> None:
    """Whatever the file is called and written as, workers find it in the stage's folder."""
    model = randomised(ConvNeXtV2.from_size("pocket", num_classes=2))
    known = Metadata(classes=("a", "b"), evaluation=Evaluation.usual(64))
    write(model.state_dict(), tmp_path / "hf", to="hf", metadata=known)
    copy = Given.of(tmp_path / "hf").copy(tmp_path)
    assert copy == tmp_path / COPY
    assert_same(inspect(copy).state, model.state_dict())
    assert inspect(copy).metadata == known
    assert Given.of(None).copy(tmp_path) is None


def test_a_file_that_was_changed_in_between_is_refused(classifier: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(classifier, tmp_path / "model.safetensors"))
    given = Given.of(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors was changed since this command"):
        given.copy(tmp_path)
    assert not (tmp_path / COPY).exists()


def job(config_overrides: tuple[str, ...], name: str, shards: Path, start: Path) -> TrainJob:
    config = configured(*config_overrides, linear_probe=PROBE)
    recipe = KINDS[name].settings(config)
    return made_up_job(config, recipe, shards, initial_weights=start)


@pytest.mark.slow
def test_fine_tuning_keeps_a_head_of_the_same_names(classifier: Path, shards: Path) -> None:
    theirs = inspect(classifier).state
    tuned = finetune.build_task(job((), "finetune", shards, classifier)).state_dict()
    assert torch.equal(tuned["model.head.weight"], theirs["head.weight"].flip(0))
    assert torch.equal(tuned["model.norm.weight"], theirs["norm.weight"])
    probed = finetune.build_task(job((), "linear-probe", shards, classifier)).state_dict()
    assert torch.equal(probed["model.norm.weight"], theirs["norm.weight"])
    assert not torch.equal(probed["model.head.weight"], theirs["head.weight"].flip(0))


def test_pretraining_goes_on_from_an_autoencoder(tmp_path: Path) -> None:
    width = "pretrain.decoder_dim=8"
    geometry = {"image_size": 32, "patch_size": 8, "stem_stride": 1}
    before = randomised(FCMAE.from_size("pocket", decoder_dim=8, **geometry))  # type: ignore[arg-type]
    path = tmp_path / "fcmae.safetensors"
    save_file(before.state_dict(), path)
    for override, kept in ((width, True), ("pretrain.decoder_dim=16", False)):
        task = pretrain.build_task(job((override,), "pretrain", tmp_path, path))
        state = {n.removeprefix("model."): v for n, v in task.state_dict().items()}
        assert_same(encoder_of(state), encoder_of(before.state_dict()))
        assert torch.equal(state["pred.bias"], before.state_dict()["pred.bias"]) == kept
