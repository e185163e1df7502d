"""Where DeepSpeed's optimizers keep what, by ZeRO stage: the one place that uses their insides.

Nothing of DeepSpeed is imported here; which insides these are is listed, and checked at the start,
by `cluster.engine.deepspeed_insides`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cluster import group
from cluster.checkpoint.fragments import WEIGHT, StateFragment
from cluster.engine.deepspeed_insides import check_insides
from cluster.engine.partition import FlatSlice, Partition


class Zero0Partition(Partition):
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

    def _slices(self) -> Iterator[FlatSlice]:
        for name, master in self._masters().items():
            yield FlatSlice(name, tuple(master.shape), 0, master, 0, master.numel())

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


class Zero12Partition(Partition):
    """Stages 1 and 2: a worker keeps a stretch of every group's parameters, laid end to end."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        super().__init__(module, optimizer)
        # Has DeepSpeed ask before a step whether gradients overflowed, by waiting for the GPU: only
        # for an optimizer that does not know `found_inf`.
        optimizer.check_grad_overflow = bool(optimizer.cpu_offload)
        optimizer.has_overflow = self._has_overflow
        if not (optimizer.partition_gradients or optimizer.overlap_comm):
            optimizer.allreduce_and_copy = reduce_together(
                optimizer.allreduce_bucket, optimizer.unflatten
            )

    def _has_overflow(self, partition_gradients: bool = True) -> bool:
        skip, self._skip = self._skip, False
        return skip

    def _slices(self) -> Iterator[FlatSlice]:
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        flats = self._optimizer.single_partition_of_fp32_groups
        for parameters, flat in zip(self._optimizer.bit16_groups, flats, strict=True):
            for parameter in parameters:
                mine = parameter._hp_mapping
                if mine is not None:
                    name, shape = names[parameter], tuple(parameter.shape)
                    start, kept = mine.lp_fragment_address.start, mine.hp_fragment_address
                    yield FlatSlice(name, shape, start, flat, kept.start, kept.numel)

    def squared_gradient_norm(self) -> Tensor:
        flats = self._optimizer.single_partition_of_fp32_groups
        if self._optimizer.cpu_offload:
            return _squares([flat.grad for flat in flats])
        gradients = self._optimizer.averaged_gradients
        return _squares([each for number in range(len(flats)) for each in gradients[number]])

    def refresh(self, updates: int | None) -> None:
        self._count(self._optimizer.single_partition_of_fp32_groups, updates)
        self._optimizer.update_lp_params()


class Zero3Partition(Partition):
    """Stage 3: a worker keeps an equal part of every parameter."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        super().__init__(module, optimizer)
        self._clean_up: Callable[[], bool] = optimizer._loss_scale_update_and_overflow_cleanup
        optimizer._overflow_check_and_loss_scale_update = self._check
        if not optimizer.offload_optimizer:
            # DeepSpeed would look at the norm, and wait for the GPU; the engine has it, and clips.
            optimizer._get_norm_groups = lambda: [torch.zeros(())]

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

    def _slices(self) -> Iterator[FlatSlice]:
        optimizer = self._optimizer
        for name, parameter, start, numel in self._parts(trained=True):
            number, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            flat = optimizer.fp32_partitioned_groups_flat[number]
            yield FlatSlice(name, tuple(parameter.ds_shape), start, flat, offset, numel)

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


def reduce_together(
    reduced: Callable[..., Tensor], unflatten: Callable[..., Sequence[Tensor]]
) -> Callable[..., None]:
    """DeepSpeed's `allreduce_and_copy` for a bucket of gradients, which copies them back by one
    operation instead of one for every parameter.
    """

    def reduce(
        gradients: list[Tensor], *arguments: Any, output_bucket: Any = None, **named: Any
    ) -> None:
        flat = reduced(gradients, *arguments, **named)
        torch._foreach_copy_(gradients, list(unflatten(flat, gradients)))

    return reduce


def _squares(gradients: list[Tensor]) -> Tensor:
    if not gradients:
        return torch.zeros(())
    norms = torch._foreach_norm(gradients, 2, torch.float32)
    return torch.stack(norms).square().sum()


_PARTITIONS: dict[str, type[Partition]] = {
    "LayerwiseAdamW": Zero0Partition,
    "FP16_UnfusedOptimizer": Zero0Partition,
    "DeepSpeedZeroOptimizer": Zero12Partition,
    "DeepSpeedZeroOptimizer_Stage3": Zero3Partition,
}


def partition_of(module: nn.Module, optimizer: Any) -> Partition:
    """The partition of a module's states in an optimizer that DeepSpeed made.

    Raises:
        RuntimeError: When this version of DeepSpeed keeps them in another way.
    """
    trained = (parameter for parameter in module.parameters() if parameter.requires_grad)
    return _PARTITIONS[check_insides(optimizer, trained)](module, optimizer)
