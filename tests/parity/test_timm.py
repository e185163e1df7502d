"""Our dense encoder against timm's with the same weights, and the published parameter counts."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, nn

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.sizes import SIZES
from convnextv2.weights import convert

# Parameters of the classifier (1000 classes), of the encoder alone and of the whole FCMAE: worked
# out from the published code, and equal to timm's and mmpretrain's printed digits.
PARAMETERS = {
    "atto": (3_708_400, 3_386_760, 7_257_992),
    "femto": (5_233_240, 4_847_472, 8_751_472),
    "pico": (9_066_280, 8_552_256, 12_521_792),
    "nano": (15_623_800, 14_981_520, 19_016_592),
    "tiny": (28_635_496, 27_864_960, 31_965_568),
    "base": (88_717_800, 87_690_752, 91_922_432),
    "large": (197_956_840, 196_416_768, 200_910_592),
    "huge": (660_289_640, 657_467_008, 662_616_192),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomise(model: nn.Module) -> None:
    """Give what starts as 0 or 1 (GRN, norms, biases) values that a mistake cannot hide behind."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or ".grn." in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def as_timm(model: ConvNeXtV2, reference: nn.Module) -> dict[str, Tensor]:
    wanted = reference.state_dict()
    ours = convert(model.state_dict(), to="timm")
    assert ours.keys() == wanted.keys()
    return {
        # timm's atto to nano keep the pointwise matrices as 1x1 convolutions.
        name: value[:, :, None, None] if value.ndim == 2 and wanted[name].ndim == 4 else value
        for name, value in ours.items()
    }


@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"),
    [
        ("atto", torch.float32, 1e-5),
        ("atto", torch.float64, 1e-11),  # Tells an epsilon of 1e-5 or 1e-12 from one of 1e-6.
        ("pico", torch.float32, 1e-5),
        ("tiny", torch.float32, 1e-5),  # Pointwise layers as matrices in timm too.
    ],
)
def test_logits_equal_timms(size: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = ConvNeXtV2.from_size(size, num_classes=11).to(dtype).eval()
    randomise(model)
    reference = timm.create_model(f"convnextv2_{size}", num_classes=11).to(dtype).eval()
    reference.load_state_dict(as_timm(model, reference))

    for shape in ((2, 3, 64, 64), (1, 3, 64, 96), (1, 3, 96, 32)):
        images = torch.randn(shape, dtype=dtype)
        with torch.inference_mode():
            torch.testing.assert_close(model(images), reference(images), rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameter_counts_are_the_published_ones(size: str) -> None:
    with torch.device("meta"):
        models = (
            ConvNeXtV2.from_size(size),
            ConvNeXtV2.from_size(size, num_classes=0),
            FCMAE.from_size(size),
        )

    counts = tuple(sum(p.numel() for p in model.parameters()) for model in models)

    assert counts == PARAMETERS[size]
    assert SIZES[size].parameters == PARAMETERS[size][0]


def test_the_table_lists_every_published_size() -> None:
    assert {name for name, size in SIZES.items() if size.parameters} == PARAMETERS.keys()
