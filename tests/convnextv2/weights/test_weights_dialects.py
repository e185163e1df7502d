"""Dialects: every file comes back under our names bit for bit, and goes out again the same way."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.weights import WeightsError, convert, encoder_of, inspect, load, read, write
from convnextv2.weights.dialects import Target
from convnextv2.weights.recognition import to_ours
from tests.convnextv2.weights.made_weights import (
    State,
    classifier_state,
    encoder_state,
    fcmae_state,
    officially_fine_tuned_from,
    sparse_kernel,
    sparse_training_state,
)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [
        name
        for name, value in expected.items()
        if found[name].dtype != value.dtype or not torch.equal(found[name], value)
    ]
    assert different == []


def saved(state: State, folder: Path) -> Path:
    path = folder / "saved.pt"
    torch.save({"model": state}, path)
    return path


def test_a_sparse_kernel_is_read_the_way_it_was_applied() -> None:
    """Convolve as MinkowskiEngine does, position by position, then densely with what was read."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    state = fcmae_state()
    depthwise, strided = noise(49, 4), noise(4, 4, 6)
    file = sparse_training_state(state) | {
        "encoder.stages.0.0.dwconv.kernel": depthwise,
        "encoder.downsample_layers.1.1.kernel": strided,
    }
    x = noise(1, 4, 8, 8)
    around = F.pad(x, (3, 3, 3, 3))
    same_size, halved = torch.zeros(1, 4, 8, 8).double(), torch.zeros(1, 6, 4, 4).double()
    for row in range(7):
        for column in range(7):
            seen = around[:, :, row : row + 8, column : column + 8]
            same_size += seen * depthwise[row + 7 * column][None, :, None, None]
    for row in range(2):
        for column in range(2):
            seen = x[:, :, row::2, column::2]
            halved += torch.einsum("bihw,io->bohw", seen, strided[row + 2 * column])

    ours = to_ours(file).state
    dense = ours["encoder.stages.0.0.dwconv.weight"]
    torch.testing.assert_close(F.conv2d(x, dense, padding=3, groups=4), same_size)
    dense = ours["encoder.downsample_layers.1.1.weight"]
    torch.testing.assert_close(F.conv2d(x, dense, stride=2), halved)


def test_a_sparse_training_file_is_read_exactly(tmp_path: Path) -> None:
    state = fcmae_state()
    written = sparse_training_state(state)
    # The shapes the original's code gives them.
    assert written["encoder.downsample_layers.2.1.kernel"].shape == (4, 6, 8)
    assert written["encoder.downsample_layers.2.1.bias"].shape == (1, 8)
    assert written["encoder.downsample_layers.0.0.weight"].shape == (4, 3, 4, 4)
    assert written["encoder.stages.2.1.dwconv.kernel"].shape == (49, 8)
    assert written["encoder.stages.2.1.pwconv1.linear.weight"].shape == (32, 8)
    assert written["encoder.stages.2.1.grn.gamma"].shape == (1, 32)
    path = saved(written, tmp_path)
    assert inspect(path).dialect == "official-sparse"
    assert_same(read(path), state)
    # What the original's own fine-tuning makes of the file.
    assert_same(encoder_of(read(path)), officially_fine_tuned_from(written))


def test_a_kernel_that_is_no_square_is_named(tmp_path: Path) -> None:
    written = sparse_training_state(fcmae_state())
    written["encoder.stages.0.0.dwconv.kernel"] = torch.zeros(48, 4)
    with pytest.raises(WeightsError, match=r"stages\.0\.0\.dwconv\.kernel is \(48, 4\), no kernel"):
        read(saved(written, tmp_path))


def test_published_fcmae_files_are_read(tmp_path: Path) -> None:
    """Dense, the encoder alone, without prefix; GRN's parameters are (1, 4C)."""
    state = encoder_state()
    flat = {n: v.reshape(1, -1) if ".grn." in n else v for n, v in state.items()}
    assert flat["stages.0.0.grn.beta"].shape == (1, 16)
    path = saved(flat, tmp_path)
    assert_same(read(path), state)
    assert inspect(path).why_no_reconstruction.startswith("it is an encoder alone")
    # And written the same way, for the official fine-tuning to start from.
    assert_same(convert(read(path), to="official"), flat)


@pytest.mark.parametrize("make", [encoder_state, fcmae_state])
def test_the_official_fine_tuning_starts_from_what_we_write(make: Callable[[], State]) -> None:
    state = make()
    assert_same(officially_fine_tuned_from(convert(state, to="official")), encoder_of(state))


def test_classifiers_are_official_as_they_are() -> None:
    assert_same(convert(classifier_state(), to="official"), classifier_state())


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("make", [classifier_state, encoder_state, fcmae_state])
@pytest.mark.parametrize("to", ["official", "timm", "hf"])
def test_what_is_written_comes_back_bit_for_bit(
    to: Target, make: Callable[[], State], file: str, tmp_path: Path
) -> None:
    state = make()
    destination = tmp_path / ("folder" if to == "hf" else file)
    write(state, destination, to=to)
    assert_same(read(destination), state if to == "official" else encoder_of(state))
    assert [path.name for path in tmp_path.iterdir()] == [destination.name]
    # And once more through another library.
    again = tmp_path / "again.safetensors"
    write(read(destination), again, to="timm")
    assert_same(read(again), encoder_of(state))


@pytest.mark.parametrize("decoder", ["convnext", "unet", "unet-noskip", "transformer"])
def test_every_decoder_is_read_and_recognised(decoder: str, tmp_path: Path) -> None:
    state = fcmae_state(decoder, dim=64, depth=2)
    save_file(state, tmp_path / "fcmae.safetensors")
    found = inspect(tmp_path / "fcmae.safetensors")
    assert_same(found.state, state)
    assert (found.dialect, found.why_no_reconstruction) == ("fcmae", "")
    geometry = found.geometry
    assert (geometry.decoder, geometry.decoder_dim, geometry.decoder_depth) == (decoder, 64, 2)


@pytest.mark.parametrize("lost", ["mask_token", "proj.bias", "pred.weight"])
def test_half_a_decoder_cannot_reconstruct(lost: str, tmp_path: Path) -> None:
    state = fcmae_state()
    del state[lost]
    save_file(state, tmp_path / "fcmae.safetensors")
    assert inspect(tmp_path / "fcmae.safetensors").geometry.decoder == ""


@pytest.mark.parametrize("to", ["official", "timm", "hf"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_stay(to: Target, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in classifier_state().items()}
    destination = tmp_path / ("folder" if to == "hf" else "weights.safetensors")
    write(state, destination, to=to)
    assert_same(read(destination), state)
    assert inspect(destination).dtypes == [str(dtype).removeprefix("torch.")]


def test_of_mixed_dtypes_the_most_frequent_is_first(tmp_path: Path) -> None:
    state = {
        name: value if name.endswith("bias") else value.half()
        for name, value in classifier_state().items()
    }
    path = saved(state, tmp_path)
    assert inspect(path).dtypes == ["float16", "float32"]
    assert_same(read(path), state)


MMPRETRAIN = (
    ("dwconv", "depthwise_conv"),
    ("pwconv", "pointwise_conv"),
    (r"^norm\.", "norm3."),
)


def mmpretrains() -> State:
    theirs = {}
    for name, value in classifier_state().items():
        value = value.flatten() if ".grn." in name else value
        for ours, other in MMPRETRAIN:
            name = re.sub(ours, other, name)
        head = name.startswith("head.")
        theirs[name.replace("head.", "head.fc.") if head else f"backbone.{name}"] = value
    return theirs


def test_mmpretrains_files_are_read(tmp_path: Path) -> None:
    torch.save({"meta": {"epoch": 1}, "state_dict": mmpretrains()}, tmp_path / "mm.pth")
    assert inspect(tmp_path / "mm.pth").dialect == "mmpretrain"
    assert_same(read(tmp_path / "mm.pth"), classifier_state())


def test_hugging_faces_model_without_head_has_no_prefix(tmp_path: Path) -> None:
    state = encoder_state()
    bare = {n.removeprefix("convnextv2."): v for n, v in convert(state, to="hf").items()}
    assert "embeddings.layernorm.bias" in bare
    save_file(bare, tmp_path / "model.safetensors")
    assert_same(read(tmp_path), state)


PREFIXES = (
    "net.",
    "backbone.",
    "module.",
    "model.",
    "student.",
    "encoder.",
    "module.model.",
    "a.b.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("make", [classifier_state, fcmae_state])
@pytest.mark.parametrize("to", ["official", "timm", "hf"])
def test_what_stands_before_every_name_is_found(
    to: Target, make: Callable[[], State], prefix: str, tmp_path: Path
) -> None:
    plain = convert(make(), to=to)
    state = {f"{prefix}{name}": value for name, value in plain.items()}
    state["loss.scale"] = torch.ones(1)
    found = inspect(saved(state, tmp_path))
    assert (found.prefix, found.left_out) == (prefix, ("loss.scale",))
    assert_same(found.state, make() if to == "official" else encoder_of(make()))


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_what_wrappers_put_into_names_is_taken_out(wrapper: str, tmp_path: Path) -> None:
    """torch.compile of a block, FSDP, activation checkpointing."""
    state = {
        f"module.{name}".replace(".stages.2.", f".stages.{wrapper}.2.{wrapper}."): value
        for name, value in classifier_state().items()
    }
    assert any(name.count(wrapper) == 2 for name in state)
    found = inspect(saved(state, tmp_path))
    assert (found.prefix, found.left_out) == ("module.", ())
    assert_same(found.state, classifier_state())


def test_the_originals_sparse_files_and_mmpretrains_may_have_a_prefix(tmp_path: Path) -> None:
    sparse = {f"module.{n}": v for n, v in sparse_training_state(fcmae_state()).items()}
    found = inspect(saved(sparse, tmp_path))
    assert (found.dialect, found.prefix) == ("official-sparse", "module.")
    assert_same(found.state, fcmae_state())
    found = inspect(saved({f"module.{n}": v for n, v in mmpretrains().items()}, tmp_path))
    assert (found.dialect, found.prefix) == ("mmpretrain", "module.")
    assert_same(found.state, classifier_state())


def test_a_name_under_the_prefix_still_needs_a_place(tmp_path: Path) -> None:
    state = {f"net.{name}": value for name, value in classifier_state().items()}
    state["net.stages.0.0.gamma"] = torch.zeros(4)  # LayerScale: a ConvNeXt V1.
    with pytest.raises(WeightsError, match=r"1 of 71 names have no place .*: stages\.0\.0\.gamma"):
        read(saved(state, tmp_path))


def test_an_unknown_file_is_answered_with_its_names_and_the_known_dialects(tmp_path: Path) -> None:
    state = {f"layer{n}.weight": torch.zeros(1) for n in range(9)}
    with pytest.raises(WeightsError) as caught:
        read(saved(state, tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'saved.pt'}: no ConvNeXt V2 in a dialect that is known (official, timm, hf, "
        "mmpretrain, fcmae, official-sparse); the names are layer0.weight, layer1.weight, "
        "layer2.weight, layer3.weight, layer4.weight, layer5.weight, layer6.weight, layer7.weight "
        "and 1 more"
    )


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("official", "stages.0.0.gamma"),  # LayerScale: a ConvNeXt V1.
        ("official", "stages.4.0.norm.weight"),
        ("official", "downsample_layers.0.2.weight"),
        ("official", "stages.0.0.dwconv.running_mean"),
        ("timm", "stages.0.blocks.0.gamma"),
        ("timm", "stages.0.downsample.0.weight"),
        ("hf", "convnextv2.encoder.stages.0.layers.0.layer_scale_parameter"),
        ("hf", "hidden_states_norms.stage1.weight"),
    ],
)
def test_a_name_without_a_place_is_told(to: Target, name: str, tmp_path: Path) -> None:
    state = convert(classifier_state(), to=to) | {name: torch.zeros(4)}
    with pytest.raises(
        WeightsError,
        match=rf"saved\.pt: 1 of {len(state)} names have no place in a ConvNeXt V2: "
        + re.escape(name),
    ):
        read(saved(state, tmp_path))


def test_a_name_that_is_there_twice_is_told(tmp_path: Path) -> None:
    state = convert(classifier_state(), to="hf")
    state["embeddings.layernorm.bias"] = state["convnextv2.embeddings.layernorm.bias"]
    with pytest.raises(WeightsError, match=r"no place .*: embeddings\.layernorm\.bias"):
        read(saved(state, tmp_path))


def test_weights_without_a_stage_are_no_convnext(tmp_path: Path) -> None:
    state = {n: v for n, v in classifier_state().items() if not n.startswith("stages.3")}
    with pytest.raises(WeightsError, match=r"saved\.pt: no ConvNeXt V2: .* a stage without blocks"):
        read(saved(state, tmp_path))
    with pytest.raises(WeightsError, match="no ConvNeXt V2"):
        convert(state, to="timm")


def test_an_unknown_library_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="cannot convert weights to 'jax'; choose one of official, timm, hf"
    ):
        convert(classifier_state(), to="jax")  # type: ignore[arg-type]


def test_a_sparse_training_file_fills_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = FCMAE.from_size("pocket", image_size=64, decoder_dim=16)
    path = saved(sparse_training_state(trained.state_dict()), tmp_path)
    other = FCMAE.from_size("pocket", image_size=64, decoder_dim=16)
    load(other, read(path))
    classifier = ConvNeXtV2.from_size("pocket", num_classes=3)
    load(classifier, encoder_of(read(path)), may_miss=("norm.", "head."))
    images = torch.randn(2, 3, 64, 64)
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]])
    assert torch.equal(other(images, mask).loss, trained(images, mask).loss)
    assert torch.equal(classifier.features(images).permute(0, 3, 1, 2), trained.encoder(images))


def test_the_made_up_kernels_are_those_of_the_original() -> None:
    """Height fastest: the second position is one row down, not one column to the right."""
    weight = torch.arange(2 * 3 * 4).reshape(2, 3, 2, 2)
    kernel = sparse_kernel(weight)
    assert kernel.shape == (4, 3, 2)
    assert torch.equal(kernel[1], weight[:, :, 1, 0].T)
    assert torch.equal(kernel[2], weight[:, :, 0, 1].T)
