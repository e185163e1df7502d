"""Our dense encoder against timm's with the same weights, and the published parameter counts."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models import load_checkpoint
from timm.models.convnext import ConvNeXt

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.sizes import SIZES
from convnextv2.weights import convert, inspect, write
from tests.convnextv2.weights.made_weights import encoder_state
from tests.convnextv2.weights.test_weights_dialects import assert_same
from tests.parity.models import CLASSES, classifier, images

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


def timms(size: str) -> ConvNeXt:
    with torch.device("meta"):
        model: ConvNeXt = timm.create_model(f"convnextv2_{size}", num_classes=CLASSES)
    return model.eval()


@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"),
    [
        ("atto", torch.float64, 1e-11),  # Tells an epsilon of 1e-5 or 1e-12 from one of 1e-6.
        *(
            pytest.param(s, torch.float32, 1e-5, marks=pytest.mark.slow if s == "huge" else ())
            for s in PARAMETERS
        ),
    ],
)
def test_logits_equal_timms(size: str, dtype: torch.dtype, tolerance: float) -> None:
    model, reference = classifier(size, dtype), timms(size)
    # Strictly, shapes included; and the same memory, for Huge is 2.6 GB.
    reference.load_state_dict(convert(model.state_dict(), to="timm"), strict=True, assign=True)

    for batch in images(size, dtype):
        with torch.inference_mode():
            ours, theirs = model(batch), reference(batch)
        assert ours.std() > 0.3  # Large enough that the tolerance says something.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pth"])
def test_timm_loads_the_file_strictly(file: str, tmp_path: Path) -> None:
    model, reference = classifier("atto"), timms("atto").to_empty(device="cpu")
    write(model.state_dict(), tmp_path / file, to="timm")
    load_checkpoint(reference, str(tmp_path / file), strict=True)
    batch = images("atto")[0]
    with torch.inference_mode():
        torch.testing.assert_close(reference(batch), model(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", ["atto", "tiny"])  # Pointwise layers as convolutions, as matrices.
def test_timms_own_weights_are_read_exactly(size: str, tmp_path: Path) -> None:
    model = classifier(size)
    reference = timms(size).to_empty(device="cpu")
    reference.load_state_dict(convert(model.state_dict(), to="timm"))
    torch.save(reference.state_dict(), tmp_path / "timm.pt")
    found = inspect(tmp_path / "timm.pt")
    assert (found.dialect, found.geometry.size) == ("timm", size)
    assert_same(found.state, model.state_dict())


def test_an_encoder_alone_lacks_timms_final_norm_and_nothing_else() -> None:
    """As timm's own `*.fcmae` weights; a size timm has no name for."""
    state = encoder_state()
    reference = ConvNeXt(
        depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), num_classes=0, use_grn=True, ls_init_value=None
    ).eval()
    report = reference.load_state_dict(convert(state, to="timm"), strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (
        ["head.norm.weight", "head.norm.bias"],
        [],
    )
    model = ConvNeXtV2(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), num_classes=0).double().eval()
    model.load_state_dict(state)
    batch = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(model(batch), reference.double().forward_features(batch))


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
