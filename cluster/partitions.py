"""Where DeepSpeed's optimizers keep what: the one place that knows their insides (0.19.8).

Nothing of DeepSpeed is imported here; `PARTITIONS` is keyed by the names of its classes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cluster import group
from cluster.states import MOMENTS, WEIGHT, Piece


class Partition(Protocol):
    """What an engine needs to know of a DeepSpeed optimizer."""

    def pieces(self) -> list[Piece]:
        """What this worker keeps; makes the optimizer state, which PyTorch would make later."""

    def squared_gradient_norm(self) -> Tensor:
        """This worker's part: the sum over workers is the squared norm of the whole gradient."""

    def skip_next_step(self) -> None:
        """Have the next step throw the gradients away and change nothing."""

    def refresh(self, updates: int | None) -> None:
        """Have the module compute with the pieces as they are now; the optimizer has done
        `updates` steps (None: as many as before). All workers call.
        """


class _Base:
    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        self._module, self._optimizer = module, optimizer
        self._adam: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)

    def _state(self, flat: Tensor) -> dict[str, Any]:
        """The optimizer's state of a tensor that it updates."""
        state: dict[str, Any] = self._adam.state[flat]
        if not state:
            # DeepSpeed's Adam for offloading counts in Python.
            on_device = isinstance(self._adam, torch.optim.AdamW)
            state["step"] = torch.tensor(0.0) if on_device else 0
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(flat, requires_grad=False)
        return state

    def _count(self, flats: Iterable[Tensor], updates: int | None) -> None:
        if updates is None:
            return
        for flat in flats:
            state = self._state(flat)
            state["step"] = (
                torch.tensor(float(updates)) if torch.is_tensor(state["step"]) else updates
            )

    def _tensors(self, flat: Tensor, start: int, numel: int) -> dict[str, Tensor]:
        whole = {WEIGHT: flat, **{moment: self._state(flat)[moment] for moment in MOMENTS}}
        return {
            kind: tensor.detach().view(-1).narrow(0, start, numel) for kind, tensor in whole.items()
        }

    def _frozen(self) -> Iterator[Piece]:
        """Parameters that are not trained, where workers keep them whole."""
        for name, parameter in self._module.named_parameters():
            if not parameter.requires_grad:
                weight = parameter.detach().float().reshape(-1)
                yield Piece(name, tuple(parameter.shape), 0, {WEIGHT: weight}, replicated=True)


class Replicated(_Base):
    """Stage 0: every worker keeps all of it, in fp32 the module's own parameters."""

    def _masters(self) -> dict[str, Tensor]:
        """The fp32 tensors that the optimizer updates, by name."""
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        low = getattr(self._optimizer, "fp16_groups", None)
        if low is None:
            return {name: p for p, name in names.items() if p.requires_grad}
        return {
            names[parameter]: master
            for group_, masters in zip(low, self._optimizer.fp32_groups, strict=True)
            for parameter, master in zip(group_, masters, strict=True)
        }

    def pieces(self) -> list[Piece]:
        masters = self._masters()
        # In bf16 DeepSpeed makes the state by a step of zeros, which Adam would count.
        self._count(masters.values(), 0)
        return [
            Piece(name, tuple(master.shape), 0, self._tensors(master, 0, master.numel()), True)
            for name, master in masters.items()
        ] + list(self._frozen())

    def squared_gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        return _squares(gradients) / group.world_size()

    def skip_next_step(self) -> None:
        for parameter in self._module.parameters():
            parameter.grad = None  # AdamW passes over what has none.
        checker = getattr(self._optimizer, "overflow_checker", None)
        if checker is not None:
            checker.check = _once(True, checker, "check")

    def refresh(self, updates: int | None) -> None:
        masters = self._masters()
        self._count(masters.values(), updates)
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                if name in masters and masters[name] is not parameter:
                    parameter.copy_(masters[name])


class Flat(_Base):
    """Stages 1 and 2: a worker keeps a stretch of every group's parameters, laid end to end."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        super().__init__(module, optimizer)
        self._skip = False
        # DeepSpeed asks itself before a step whether gradients overflowed, in bf16 and fp16.
        optimizer.check_grad_overflow = True
        optimizer.has_overflow = self._has_overflow

    def _has_overflow(self, partition_gradients: bool = True) -> bool:
        skip, self._skip = self._skip, False
        return skip

    def pieces(self) -> list[Piece]:
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        pieces = []
        flats = self._optimizer.single_partition_of_fp32_groups
        for parameters, flat in zip(self._optimizer.bit16_groups, flats, strict=True):
            for parameter in parameters:
                mine = parameter._hp_mapping
                if mine is not None:
                    kept = mine.hp_fragment_address
                    tensors = self._tensors(flat, kept.start, kept.numel)
                    start = mine.lp_fragment_address.start
                    pieces.append(Piece(names[parameter], tuple(parameter.shape), start, tensors))
        return pieces + list(self._frozen())

    def squared_gradient_norm(self) -> Tensor:
        flats = self._optimizer.single_partition_of_fp32_groups
        if self._optimizer.cpu_offload:
            return _squares([flat.grad for flat in flats])
        gradients = self._optimizer.averaged_gradients
        return _squares([each for number in range(len(flats)) for each in gradients[number]])

    def skip_next_step(self) -> None:
        self._skip = True

    def refresh(self, updates: int | None) -> None:
        self._count(self._optimizer.single_partition_of_fp32_groups, updates)
        self._optimizer.update_lp_params()


class Scattered(_Base):
    """Stage 3: a worker keeps an equal part of every parameter."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        super().__init__(module, optimizer)
        self._skip = False
        self._clean_up: Callable[[], bool] = optimizer._loss_scale_update_and_overflow_cleanup
        optimizer._overflow_check_and_loss_scale_update = self._check

    def _check(self, update_scale: bool = True) -> bool:
        self._optimizer.overflow, self._skip = self._skip, False
        return self._clean_up() if update_scale else bool(self._optimizer.overflow)

    def pieces(self) -> list[Piece]:
        optimizer, pieces = self._optimizer, []
        parameters: Iterable[tuple[str, Any]] = self._module.named_parameters()
        for name, parameter in parameters:
            part = parameter.ds_tensor.ds_numel
            start = group.rank() * part
            # The last parts are filled up to equal length.
            numel = max(0, min(part, parameter.ds_numel - start))
            shape = tuple(parameter.ds_shape)
            if not parameter.requires_grad:
                weight = parameter.ds_tensor.detach().float().view(-1)[:numel]
                pieces.append(Piece(name, shape, start, {WEIGHT: weight}))
                continue
            number, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            flat = optimizer.fp32_partitioned_groups_flat[number]
            pieces.append(Piece(name, shape, start, self._tensors(flat, offset, numel)))
        return [piece for piece in pieces if piece.numel]

    def squared_gradient_norm(self) -> Tensor:
        optimizer = self._optimizer
        if optimizer.offload_optimizer:
            return _squares([flat.grad for flat in optimizer.fp32_partitioned_groups_flat])
        return _squares([each for part in optimizer.averaged_gradients.values() for each in part])

    def skip_next_step(self) -> None:
        self._skip = True

    def refresh(self, updates: int | None) -> None:
        optimizer = self._optimizer
        self._count(optimizer.fp32_partitioned_groups_flat, updates)
        optimizer._partition_all_parameters()
        with torch.no_grad():
            for number in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        optimizer.invalidate_secondary_tensor()


def _squares(gradients: list[Tensor]) -> Tensor:
    if not gradients:
        return torch.zeros(())
    norms = torch._foreach_norm(gradients, 2, torch.float32)
    return torch.stack(norms).square().sum()


def _once(answer: bool, owner: Any, name: str) -> Callable[..., bool]:
    """A method that answers so one time, and is the class's own again then."""

    def method(*_: Any) -> bool:
        delattr(owner, name)
        return answer

    return method


PARTITIONS: dict[str, Callable[[nn.Module, Any], Partition]] = {
    "AdamW": Replicated,
    "FP16_UnfusedOptimizer": Replicated,
    "DeepSpeedZeroOptimizer": Flat,
    "DeepSpeedZeroOptimizer_Stage3": Scattered,
}
