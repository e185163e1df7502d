"""AdamW (arXiv 1711.05101) for states that ZeRO has laid end to end."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Stretch = tuple[int, int, float]
"""First element, one past the last, and what their learning rate is multiplied by."""


class LayerwiseAdamW(torch.optim.AdamW):
    """AdamW whose learning rate has a factor for every stretch of a flattened tensor.

    ZeRO reduces, copies and gathers group by group, and a group for every layer's rate costs a
    tenth of a step (docs/training.md). Here there is a group for every weight decay; the layers
    keep their rates as `stretches` of the tensors. PyTorch's fused kernel does the arithmetic.

    Args:
        groups: With weight_decay and, unless it is 1, lr_scale.
        betas: Of the moments.

    Attributes:
        stretches: By tensor that is updated; elements outside of them stay as they are.
        found_inf: () fp32 where the weights are. Where it is 1 a step changes nothing and is not
            counted; nobody has to wait for it.
        grad_scale: () fp32 there, what gradients are divided by: to clip them without a wait and
            without another pass over them.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float]) -> None:
        merged: dict[float, dict[str, Any]] = {}
        self.scales: dict[Tensor, float] = {}
        for group in groups:
            decay = group["weight_decay"]
            merged.setdefault(decay, {"params": [], "weight_decay": decay})
            merged[decay]["params"] += group["params"]
            self.scales |= dict.fromkeys(group["params"], group["lr_scale"])
        self.stretches: Mapping[Tensor, Sequence[Stretch]] = {}
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None
        super().__init__(list(merged.values()), lr=0.0, betas=betas)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        if not self.stretches:
            return  # DeepSpeed's bf16 steps once on zeros to make states; `Partition` makes ours.
        counted = torch.ones(()) if self.found_inf is None else 1 - self.found_inf
        for group in self.param_groups:
            updated = [tensor for tensor in group["params"] if tensor.grad is not None]
            if updated:
                counts = [self.state[tensor]["step"] for tensor in updated]
                # A tensor outside of a list is read as a number, for which the host would wait.
                torch._foreach_add_(counts, [counted] * len(counts))
            columns: dict[float, tuple[list[Tensor], ...]] = defaultdict(lambda: ([], [], [], []))
            steps: dict[float, list[Tensor]] = defaultdict(list)
            for tensor in updated:
                state = self.state[tensor]
                parts = (tensor, tensor.grad, state["exp_avg"], state["exp_avg_sq"])
                for begin, end, scale in self.stretches[tensor]:
                    whole = end - begin == tensor.numel()
                    for column, part in zip(columns[scale], parts, strict=True):
                        column.append(part if whole else part.view(-1)[begin:end])
                    steps[scale].append(state["step"])
            for scale, (weights, gradients, first, second) in columns.items():
                torch._fused_adamw_(
                    weights,
                    gradients,
                    first,
                    second,
                    [],
                    steps[scale],
                    lr=group["lr"] * scale,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                    grad_scale=self.grad_scale,
                    found_inf=self.found_inf,
                )


def joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """In order, neighbours of equal rate in one."""
    result: list[Stretch] = []
    for begin, end, scale in sorted(stretches):
        if result and result[-1][1:] == (begin, scale):
            begin = result.pop()[0]
        result.append((begin, end, scale))
    return result
