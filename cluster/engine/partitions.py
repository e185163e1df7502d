"""Where DeepSpeed's optimizers keep what: the one place that knows their insides (0.19.8).

Nothing of DeepSpeed is imported here; `PARTITIONS` is keyed by the names of its classes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cluster import group
from cluster.checkpoint.fragments import MOMENTS, WEIGHT, StateFragment
from cluster.engine.adamw import Stretch, joined


class Partition(Protocol):
    """What an engine needs to know of a DeepSpeed optimizer."""

    def fragments(self) -> list[StateFragment]:
        """What this worker keeps; makes the optimizer state, which PyTorch would make later."""

    def stretches(self, scales: Mapping[str, float]) -> dict[Tensor, list[Stretch]]:
        """The tensors that the optimizer updates, with the scales of the parameters in them."""

    def squared_gradient_norm(self) -> Tensor:
        """This worker's part: the sum over workers is the squared norm of the whole gradient."""

    def skip_next_step(self) -> None:
        """Have the next step throw the gradients away and change nothing: for optimizers on the
        host, which stage 0 has none of. Others leave a step out by `LayerwiseAdamW.found_inf`.
        """

    def refresh(self, updates: int | None) -> None:
        """Have the module compute with the fragments as they are now; the optimizer has done
        `updates` steps (None: as many as before). All workers call.
        """


class _Place(NamedTuple):
    """Elements `offset` to `offset + numel` of `flat` are those of a parameter from `start` on."""

    name: str
    shape: tuple[int, ...]
    start: int
    flat: Tensor
    offset: int
    numel: int


class _Base:
    replicated = False

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        self._module, self._optimizer = module, optimizer
        self._skip = False
        self._adam: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)

    def _places(self) -> Iterator[_Place]:
        """Where what is trained lies."""
        raise NotImplementedError

    def _frozen(self) -> Iterator[StateFragment]:
        """Parameters that are not trained, where workers keep them whole."""
        for name, parameter in self._module.named_parameters():
            if not parameter.requires_grad:
                weight = parameter.detach().float().reshape(-1)
                yield StateFragment(
                    name, tuple(parameter.shape), 0, {WEIGHT: weight}, replicated=True
                )

    def fragments(self) -> list[StateFragment]:
        trained = [
            StateFragment(
                place.name,
                place.shape,
                place.start,
                self._tensors(place.flat, place.offset, place.numel),
                self.replicated,
            )
            for place in self._places()
        ]
        return [*trained, *self._frozen()]

    def stretches(self, scales: Mapping[str, float]) -> dict[Tensor, list[Stretch]]:
        found: dict[Tensor, list[Stretch]] = defaultdict(list)
        for place in self._places():
            end = place.offset + place.numel
            found[place.flat].append((place.offset, end, scales[place.name]))
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


class Zero0Partition(_Base):
    """Stage 0: every worker keeps all of it, in fp32 the module's own parameters."""

    replicated = True

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

    def fragments(self) -> list[StateFragment]:
        # In bf16 DeepSpeed makes the state by a step of zeros, which Adam would count.
        self._count(self._masters().values(), 0)
        return super().fragments()

    def _places(self) -> Iterator[_Place]:
        for name, master in self._masters().items():
            yield _Place(name, tuple(master.shape), 0, master, 0, master.numel())

    def squared_gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        return _squares(gradients) / group.world_size()

    def refresh(self, updates: int | None) -> None:
        masters = self._masters()
        self._count(masters.values(), updates)
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                if name in masters and masters[name] is not parameter:
                    parameter.copy_(masters[name])


class Zero12Partition(_Base):
    """Stages 1 and 2: a worker keeps a stretch of every group's parameters, laid end to end."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        super().__init__(module, optimizer)
        # Has DeepSpeed ask before a step whether gradients overflowed, by waiting for the GPU: only
        # for an optimizer that does not know `found_inf`.
        optimizer.check_grad_overflow = bool(optimizer.cpu_offload)
        optimizer.has_overflow = self._has_overflow

    def _has_overflow(self, partition_gradients: bool = True) -> bool:
        skip, self._skip = self._skip, False
        return skip

    def _places(self) -> Iterator[_Place]:
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        flats = self._optimizer.single_partition_of_fp32_groups
        for parameters, flat in zip(self._optimizer.bit16_groups, flats, strict=True):
            for parameter in parameters:
                mine = parameter._hp_mapping
                if mine is not None:
                    name, shape = names[parameter], tuple(parameter.shape)
                    start, kept = mine.lp_fragment_address.start, mine.hp_fragment_address
                    yield _Place(name, shape, start, flat, kept.start, kept.numel)

    def squared_gradient_norm(self) -> Tensor:
        flats = self._optimizer.single_partition_of_fp32_groups
        if self._optimizer.cpu_offload:
            return _squares([flat.grad for flat in flats])
        gradients = self._optimizer.averaged_gradients
        return _squares([each for number in range(len(flats)) for each in gradients[number]])

    def refresh(self, updates: int | None) -> None:
        self._count(self._optimizer.single_partition_of_fp32_groups, updates)
        self._optimizer.update_lp_params()


class Zero3Partition(_Base):
    """Stage 3: a worker keeps an equal part of every parameter."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        super().__init__(module, optimizer)
        self._clean_up: Callable[[], bool] = optimizer._loss_scale_update_and_overflow_cleanup
        optimizer._overflow_check_and_loss_scale_update = self._check

    def _check(self, update_scale: bool = True) -> bool:
        self._optimizer.overflow, self._skip = self._skip, False
        return self._clean_up() if update_scale else bool(self._optimizer.overflow)

    def _parts(self, *, trained: bool) -> Iterator[tuple[str, Any, int, int]]:
        """Name, parameter, first element and number of elements that are this worker's."""
        parameters: Iterable[tuple[str, Any]] = self._module.named_parameters()
        for name, parameter in parameters:
            part = parameter.ds_tensor.ds_numel
            start = group.rank() * part
            # The last parts are filled up to equal length.
            numel = min(part, parameter.ds_numel - start)
            if parameter.requires_grad is trained and numel > 0:
                yield name, parameter, start, numel

    def _places(self) -> Iterator[_Place]:
        optimizer = self._optimizer
        for name, parameter, start, numel in self._parts(trained=True):
            number, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            flat = optimizer.fp32_partitioned_groups_flat[number]
            yield _Place(name, tuple(parameter.ds_shape), start, flat, offset, numel)

    def _frozen(self) -> Iterator[StateFragment]:
        for name, parameter, start, numel in self._parts(trained=False):
            weight = parameter.ds_tensor.detach().float().view(-1)[:numel]
            yield StateFragment(name, tuple(parameter.ds_shape), start, {WEIGHT: weight})

    def squared_gradient_norm(self) -> Tensor:
        optimizer = self._optimizer
        if optimizer.offload_optimizer:
            return _squares([flat.grad for flat in optimizer.fp32_partitioned_groups_flat])
        return _squares([each for part in optimizer.averaged_gradients.values() for each in part])

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


PARTITIONS: dict[str, Callable[[nn.Module, Any], Partition]] = {
    "LayerwiseAdamW": Zero0Partition,
    "FP16_UnfusedOptimizer": Zero0Partition,
    "DeepSpeedZeroOptimizer": Zero12Partition,
    "DeepSpeedZeroOptimizer_Stage3": Zero3Partition,
}
