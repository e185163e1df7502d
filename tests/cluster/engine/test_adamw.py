"""Layer-wise rates inside one tensor are those of a group for every layer."""

import pytest
import torch
from torch import nn

from cluster.engine.adamw import LayerwiseAdamW, joined

BETAS = (0.9, 0.95)


def test_neighbours_of_equal_rate_are_joined() -> None:
    stretches = [(4, 6, 0.5), (0, 3, 1.0), (3, 4, 0.5), (8, 9, 0.5), (6, 7, 1.0)]
    expected = [(0, 3, 1.0), (3, 6, 0.5), (6, 7, 1.0), (8, 9, 0.5)]
    assert joined(stretches) == expected


def test_a_flat_tensor_is_trained_as_its_layers_are() -> None:
    torch.manual_seed(0)
    rates, start = (1.0, 0.5, 0.0), torch.randn(3, 7)
    layers = [nn.Parameter(row.clone()) for row in start]
    plain = torch.optim.AdamW([{"params": [layer]} for layer in layers], betas=BETAS)
    flat = nn.Parameter(torch.cat([start.flatten(), torch.ones(2)]))
    group = {"params": [flat], "weight_decay": 0.1, "lr_scale": 1.0}
    ours = LayerwiseAdamW([group], betas=BETAS)
    ours.stretches = {flat: [(7 * n, 7 * n + 7, rate) for n, rate in enumerate(rates)]}
    ours.state[flat] = {
        "step": torch.zeros(()), "exp_avg": torch.zeros(23), "exp_avg_sq": torch.zeros(23)
    }  # fmt: skip
    for step in range(4):
        gradient = torch.randn(3, 7)
        for layer, row, settings, rate in zip(
            layers, gradient, plain.param_groups, rates, strict=True
        ):
            layer.grad = row
            settings |= {"lr": 0.1 * (step + 1) * rate, "weight_decay": 0.1}
        plain.step()
        flat.grad = torch.cat([gradient.flatten(), torch.ones(2)])
        ours.param_groups[0]["lr"] = 0.1 * (step + 1)
        ours.step()
    torch.testing.assert_close(flat.detach()[:21].view(3, 7), torch.stack([*layers]).detach())
    assert torch.equal(flat[14:21], start[2]), "a rate of 0 moves nothing"
    assert torch.equal(flat[21:], torch.ones(2)), "outside of the stretches nothing moves"
    assert ours.state[flat]["step"] == 4


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_gradients_are_divided_by_the_scale_they_are_clipped_by(scale: float) -> None:
    gradient = torch.randn(5)
    results = []
    for divisor, given in ((scale, gradient), (1.0, gradient / scale)):
        flat = nn.Parameter(torch.arange(5.0))
        group = {"params": [flat], "weight_decay": 0.1, "lr_scale": 1.0}
        optimizer = LayerwiseAdamW([group], betas=BETAS)
        optimizer.stretches = {flat: [(0, 2, 1.0), (2, 5, 0.5)]}
        moments = {name: torch.zeros(5) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[flat] = {"step": torch.zeros(()), **moments}
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.grad_scale = torch.tensor(divisor)
        flat.grad = given.clone()
        optimizer.step()
        results.append((flat.detach(), moments["exp_avg_sq"]))
    torch.testing.assert_close(*results)


def test_there_is_a_group_for_every_decay() -> None:
    first, second, third = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = LayerwiseAdamW(
        [
            {"params": [first], "weight_decay": 0.1, "lr_scale": 0.5},
            {"params": [second], "weight_decay": 0.0, "lr_scale": 0.5},
            {"params": [third], "weight_decay": 0.1, "lr_scale": 1.0},
        ],
        betas=BETAS,
    )
    groups = [(group["params"], group["weight_decay"]) for group in optimizer.param_groups]
    assert [decay for _, decay in groups] == [0.1, 0.0]
    assert groups[0][0][0] is first
    assert groups[0][0][1] is third
    assert [optimizer.scales[each] for each in (first, second, third)] == [0.5, 0.5, 1.0]


@pytest.mark.parametrize("found_inf", [None, 0.0])
def test_a_step_that_is_to_be_left_out_changes_nothing_and_is_not_counted(
    found_inf: float | None,
) -> None:
    """Training with a bad step between good ones ends as training without it."""
    torch.manual_seed(0)
    start, gradients = torch.randn(5), torch.randn(3, 5)
    ends = []
    for bad_after in (None, 2):
        flat = nn.Parameter(start.clone())
        optimizer = LayerwiseAdamW(
            [{"params": [flat], "weight_decay": 0.1, "lr_scale": 1.0}], betas=BETAS
        )
        optimizer.stretches = {flat: [(0, 2, 1.0), (2, 5, 0.5)]}
        state = {"step": torch.zeros(()), "exp_avg": torch.zeros(5), "exp_avg_sq": torch.zeros(5)}
        optimizer.state[flat] = state
        optimizer.param_groups[0]["lr"] = 0.1
        for number, gradient in enumerate(gradients):
            if number == bad_after:
                flat.grad, optimizer.found_inf = torch.full((5,), torch.nan), torch.tensor(1.0)
                optimizer.step()
            flat.grad = gradient
            optimizer.found_inf = None if found_inf is None else torch.tensor(found_inf)
            optimizer.step()
        ends.append([flat.detach(), *state.values()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    assert ends[0][1] == 3


def test_a_step_asks_the_device_for_nothing() -> None:
    """PyTorch's device "meta" has no values: what would be read from a GPU is an error there."""
    with torch.device("meta"):
        weights = [nn.Parameter(torch.empty(5)) for _ in range(2)]
        groups = [
            {"params": [weight], "weight_decay": decay, "lr_scale": 1.0}
            for weight, decay in zip(weights, (0.1, 0.0), strict=True)
        ]
        optimizer = LayerwiseAdamW(groups, betas=BETAS)
        for weight in weights:
            weight.grad = torch.empty(5)
            state = ("step", ()), ("exp_avg", (5,)), ("exp_avg_sq", (5,))
            optimizer.state[weight] = {name: torch.empty(shape) for name, shape in state}
        optimizer.stretches = {weight: [(0, 2, 1.0), (2, 5, 0.5)] for weight in weights}
        optimizer.found_inf = torch.empty(())
        optimizer.step()
