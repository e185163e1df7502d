"""The formula against the ZeRO paper's figures, and against what a plain optimizer holds."""

import pytest
import torch

from cluster.engine.memory import model_states
from tests.cluster.engine.toy import Toy


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_papers_figure_1(stage: int, gigabytes: float) -> None:
    """7.5 billion parameters in 16 bits, Adam, 64 workers (arXiv 1910.02054)."""
    found = model_states(7_500_000_000, stage=stage, world_size=64, precision="bf16")
    assert found.total / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_alone_in_fp32_it_is_what_pytorch_holds() -> None:
    toy = Toy()
    optimizer = torch.optim.AdamW(toy.parameters())
    toy((torch.randn(2, 8), torch.tensor([0, 1]))).loss.backward()
    optimizer.step()
    held = [*toy.parameters(), *(p.grad for p in toy.parameters() if p.grad is not None)]
    held += [
        state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    parameters = sum(parameter.numel() for parameter in toy.parameters())
    alone = model_states(parameters, stage=0, world_size=1)
    assert alone.total == sum(tensor.nbytes for tensor in held)
    with_ema = model_states(parameters, stage=0, world_size=1, ema=True)
    assert with_ema == alone._replace(ema=4 * parameters)
