"""Images whose sides are no multiples of the stride: rounded down as by timm and transformers."""

from pathlib import Path

import pytest
import timm
import torch
from transformers import ConvNextV2ForImageClassification

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.weights import convert, write
from tests.parity.models import CLASSES, classifier

SIZES = [(225, 225), (230, 230), (250, 300), (33, 95), (32, 63)]


@pytest.fixture(scope="module")
def model() -> ConvNeXtV2:
    return classifier("atto")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_is_seen_as_timm_and_hugging_face_see_it(
    size: tuple[int, int], model: ConvNeXtV2, tmp_path: Path
) -> None:
    timms = timm.create_model("convnextv2_atto", num_classes=CLASSES).eval()
    timms.load_state_dict(convert(model.state_dict(), to="timm"), strict=True)
    write(model.state_dict(), tmp_path / "hf", to="hf")
    hugging = ConvNextV2ForImageClassification.from_pretrained(tmp_path / "hf").eval()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = model(images)
        assert ours.std() > 0.3
        torch.testing.assert_close(ours, timms(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours, hugging(images).logits, rtol=0, atol=1e-5)


def test_the_stems_remainder_gets_no_gradient(model: ConvNeXtV2) -> None:
    images = torch.randn(1, 3, 34, 70, requires_grad=True)
    model(images).sum().backward()
    assert images.grad is not None
    # 8 and 17 windows of 4; what is beyond the last whole stride still is a neighbour.
    assert images.grad[:, :, :32, 64:68].abs().sum() > 0
    assert images.grad[:, :, 32:].abs().sum() == images.grad[..., 68:].abs().sum() == 0


def test_images_smaller_than_a_stride_are_refused(model: ConvNeXtV2) -> None:
    with pytest.raises(ValueError, match="31x64 is smaller than the total stride 32; 32x32 and mo"):
        model(torch.zeros(1, 3, 31, 64))


def test_the_autoencoder_stays_strict() -> None:
    with pytest.raises(ValueError, match="multiple"):
        FCMAE.from_size("pocket", image_size=225)
    with pytest.raises(ValueError, match="225"):
        FCMAE.from_size("pocket", image_size=224)(torch.zeros(1, 3, 225, 225))
