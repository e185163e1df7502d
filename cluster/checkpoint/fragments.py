"""The state of training by parameter name, however ZeRO has cut it up.

A worker keeps, of every parameter it is in charge of, one run of elements of the flattened
parameter: a `StateFragment`. Fragments are what is averaged, saved, restored and exported; nothing
else needs to know about stages, groups or paddings.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# What tensors are called in the files of a checkpoint, which stay readable: the EMA is "average".
WEIGHT, EMA_WEIGHT = "weight", "average"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class StateFragment:
    """Elements `start` to `start + numel` of a flattened parameter, as a worker keeps them.

    Attributes:
        name: Of the parameter in the module.
        shape: Of the whole parameter.
        start: First element.
        tensors: (numel,) each, fp32, views of what is trained on: "weight", "exp_avg" and
            "exp_avg_sq" (not of parameters that are not trained), "average" where one is kept.
        replicated: Every worker keeps the same.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, Tensor]
    replicated: bool = False

    @property
    def numel(self) -> int:
        return self.tensors[WEIGHT].numel()

    def saved_by(self, rank: int, world_size: int) -> "StateFragment":
        """The part that worker saves: all of it, or a part of its own of what all of them keep."""
        if not self.replicated:
            return self
        begin, end = (self.numel * number // world_size for number in (rank, rank + 1))
        tensors = {kind: tensor[begin:end] for kind, tensor in self.tensors.items()}
        return replace(self, start=self.start + begin, tensors=tensors, replicated=False)


class EMA:
    """Exponential moving average of the weights, kept where the optimizer keeps its state.

    Update t (from 1) uses min(`decay`, (t - 1) / t): the plain mean of all weights so far until
    that is as long as the average's memory, so the initial weights leave no bias.
    """

    def __init__(self, fragments: Iterable[StateFragment], decay: float) -> None:
        """Add the tensor "average" to the fragments, equal to their weights."""
        self.decay, self.updates = decay, 0
        trained = [fragment for fragment in fragments if MOMENTS[0] in fragment.tensors]
        self._weights = [fragment.tensors[WEIGHT] for fragment in trained]
        self._averages = [weight.detach().clone() for weight in self._weights]
        for fragment, average in zip(trained, self._averages, strict=True):
            fragment.tensors[EMA_WEIGHT] = average

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after an optimizer step in."""
        self.updates += 1
        rate = 1 - min(self.decay, (self.updates - 1) / self.updates)
        if self._averages:
            torch._foreach_lerp_(self._averages, self._weights, rate)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average; a second time puts them back, bit for bit."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
