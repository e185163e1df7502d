"""The formula for activations against the tensors that real models keep for their backward pass."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convnextv2 import kernels
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.fcmae import model as fcmae
from convnextv2.fcmae.masking import sample_masks
from convnextv2.kernels import gpu, native
from convnextv2.kernels.gpu import depthwise_conv, grn, norm
from convnextv2.kernels.gpu.neighbours import neighbour_table
from convnextv2.memory import Kernels, Step, activation_bytes, parameter_count
from convnextv2.sizes import SIZES

PRETRAINING = Step(size="pocket", image_size=96, mask_ratio=0.6, decoder_dim=64)
ATTO = replace(PRETRAINING, size="atto", decoder_dim=512)
DENSE = replace(PRETRAINING, mask_ratio=None)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernels], None]:
    """Chooses kernels; Triton's are those for GPUs, whose programs compute nothing here."""

    def choose(chosen: Kernels) -> None:
        if chosen != "native":
            monkeypatch.setattr(native, "usable", lambda *tensors: False)
        if chosen != "triton":
            return
        monkeypatch.setattr(gpu, "usable", lambda *tensors: True)
        monkeypatch.setattr(
            kernels,
            "neighbours_of",
            lambda patches, grid: neighbour_table(patches, grid, gpu.LARGEST_KERNEL),
        )
        monkeypatch.setattr(fcmae, "check_finite", lambda loss, images: None)
        for module in (depthwise_conv, grn, norm):
            monkeypatch.setattr(module, "launch", lambda *arguments, **more: None)

    return choose


def built(step: Step) -> nn.Module:
    encoder = ConvNeXtV2.from_size(
        step.size,
        num_classes=0 if step.mask_ratio is not None else 10,
        checkpoint_stages=step.checkpoint_stages,
    )
    if step.mask_ratio is None:
        return encoder
    return FCMAE(
        encoder,
        image_size=step.image_size,
        mask_ratio=step.mask_ratio,
        decoder_dim=step.decoder_dim,
        backend=step.backend,
    )


def kept_for(step: Step, model: nn.Module, batch: int) -> int:
    """Bytes of the storages that a forward pass leaves, those of parameters not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.randn(
        batch, 3, step.image_size, step.image_size, dtype=next(model.parameters()).dtype
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if isinstance(model, FCMAE):
            patches = model.grid[0] * model.grid[1]
            masks = sample_masks(
                seed=0,
                epoch=0,
                indices=range(batch),
                num_patches=patches,
                mask_ratio=model.mask_ratio,
            )
            loss = model(images, mask=masks, prediction="masked").loss
        else:
            loss = model(images).float().square().mean()
    assert loss.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize(
    "step",
    [
        replace(PRETRAINING, kernels="native", value_bytes=4),
        replace(ATTO, kernels="native", value_bytes=4),
        replace(ATTO, kernels="plain", value_bytes=4),
        replace(ATTO, kernels="plain"),
        replace(ATTO, kernels="triton"),
        replace(ATTO, kernels="triton", value_bytes=4),
        replace(ATTO, kernels="native", value_bytes=4, checkpoint_stages=(0, 2)),
        replace(ATTO, backend="masked-dense", kernels="native", value_bytes=4),
        replace(ATTO, backend="masked-dense", kernels="plain"),
        replace(DENSE, kernels="native", value_bytes=4),
        replace(DENSE, size="atto", kernels="native", value_bytes=4),
        replace(DENSE, size="atto", kernels="plain", value_bytes=4),
        replace(DENSE, size="atto", kernels="plain"),
        replace(DENSE, size="atto", kernels="triton"),
        replace(DENSE, size="atto", kernels="plain", checkpoint_stages=(0, 1, 2, 3)),
    ],
    ids=lambda step: (
        f"{step.size} {'dense' if step.mask_ratio is None else step.backend} "
        f"{step.kernels} {8 * step.value_bytes} bits {step.checkpoint_stages}"
    ),
)
def test_is_within_a_tenth_of_what_is_kept(step: Step, use: Callable[[Kernels], None]) -> None:
    use(step.kernels)
    torch.manual_seed(0)
    model = built(step).to(torch.bfloat16 if step.value_bytes == 2 else torch.float32)
    # Of two more images: what does not grow with the batch is the weights' own.
    counted = kept_for(step, model, 4) - kept_for(step, model, 2)
    assert activation_bytes(step, 2).kept == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [PRETRAINING, DENSE])
def test_counts_parameters(size: str, step: Step) -> None:
    step = replace(step, size=size)
    with torch.device("meta"):
        model = built(step)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert parameter_count(step, num_classes=10) == expected


@pytest.mark.parametrize(
    ("size", "batch", "gibibytes", "deviation"),
    [("atto", 512, 3.4, -0.124), ("base", 256, 7.7, -0.033), ("large", 256, 11.4, -0.025),
     ("huge", 128, 11.6, 0.011)],
)  # fmt: skip
def test_deviates_from_totals_on_a_gpu_as_documented(
    size: str, batch: int, gibibytes: float, deviation: float
) -> None:
    """The rows of docs/gpu.md: forward and backward on an H200, bf16, without an optimizer."""
    step = Step(size=size, mask_ratio=0.6)
    weights_and_gradients = 2 * step.value_bytes * parameter_count(step)
    found = (activation_bytes(step, batch).total + weights_and_gradients) / 2**30
    assert found / gibibytes - 1 == pytest.approx(deviation, abs=1e-3)
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    row = f"| {size.title()} | {batch} | {found:.2f} | {gibibytes} | {deviation:+.1%} |"
    assert row in page
