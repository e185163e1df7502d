"""What a worker keeps of the model's states, as an engine and a checkpoint look at it."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cluster.checkpoint.fragments import MOMENTS, WEIGHT, StateFragment
from cluster.engine.adamw import Stretch, joined


class FlatSlice(NamedTuple):
    """Elements `offset` to `offset + numel` of `flat` are those of a parameter from `start` on."""

    name: str
    shape: tuple[int, ...]
    start: int
    flat: Tensor
    offset: int
    numel: int


class Partition(ABC):
    """What an engine needs to know of a DeepSpeed optimizer."""

    replicated = False

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        self._module, self._optimizer = module, optimizer
        self._skip = False
        self._adam: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)

    @abstractmethod
    def squared_gradient_norm(self) -> Tensor:
        """This worker's part: the sum over workers is the squared norm of the whole gradient."""

    @abstractmethod
    def refresh(self, updates: int | None) -> None:
        """Have the module compute with the fragments as they are now; the optimizer has done
        `updates` steps (None: as many as before). All workers call.
        """

    @abstractmethod
    def _slices(self) -> Iterator[FlatSlice]:
        """Which elements of which tensor are those of a trained parameter."""

    def _frozen(self) -> Iterator[StateFragment]:
        """Parameters that are not trained, where workers keep them whole."""
        for name, parameter in self._module.named_parameters():
            if not parameter.requires_grad:
                weight = parameter.detach().float().reshape(-1)
                yield StateFragment(
                    name, tuple(parameter.shape), 0, {WEIGHT: weight}, replicated=True
                )

    def fragments(self) -> list[StateFragment]:
        """What this worker keeps; makes the optimizer state, which PyTorch would make later."""
        trained = [
            StateFragment(
                each.name,
                each.shape,
                each.start,
                self._tensors(each.flat, each.offset, each.numel),
                self.replicated,
            )
            for each in self._slices()
        ]
        return [*trained, *self._frozen()]

    def stretches(self, scales: Mapping[str, float]) -> dict[Tensor, list[Stretch]]:
        """The tensors that the optimizer updates, with the scales of the parameters in them."""
        found: dict[Tensor, list[Stretch]] = defaultdict(list)
        for each in self._slices():
            end = each.offset + each.numel
            found[each.flat].append((each.offset, end, scales[each.name]))
        return {flat: joined(stretches) for flat, stretches in found.items()}

    def _state(self, flat: Tensor) -> dict[str, Any]:
        """The optimizer's state of a tensor that it updates."""
        state: dict[str, Any] = self._adam.state[flat]
        if not state:
            # DeepSpeed's Adam for offloading counts in Python.
            fused = isinstance(self._adam, torch.optim.AdamW)
            state["step"] = torch.zeros((), device=flat.device) if fused else 0
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(flat, requires_grad=False)
        return state

    def skip_next_step(self) -> None:
        """Have the next step throw the gradients away and change nothing: for optimizers on the
        host, which stage 0 has none of. Others leave a step out by `LayerwiseAdamW.found_inf`.
        """
        self._skip = True

    def _count(self, flats: Iterable[Tensor], updates: int | None) -> None:
        if updates is None:
            return
        for flat in flats:
            state = self._state(flat)
            if torch.is_tensor(state["step"]):
                state["step"].fill_(updates)
            else:
                state["step"] = updates

    def _tensors(self, flat: Tensor, start: int, numel: int) -> dict[str, Tensor]:
        whole = {WEIGHT: flat, **{moment: self._state(flat)[moment] for moment in MOMENTS}}
        return {
            kind: tensor.detach().view(-1).narrow(0, start, numel) for kind, tensor in whole.items()
        }
