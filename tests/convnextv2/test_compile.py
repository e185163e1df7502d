"""The encoder is one graph for torch.compile: no break, the same logits and gradients."""

import pytest
import torch

from convnextv2.encoder import ConvNeXtV2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend: str) -> None:
    torch.manual_seed(0)
    model = ConvNeXtV2(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    images = torch.randn(2, 3, 64, 32)
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    expected = model(images)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    logits = compiled(images)
    got = torch.autograd.grad(logits.square().sum(), list(model.parameters()))

    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
