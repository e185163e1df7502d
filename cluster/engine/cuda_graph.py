"""The forward and backward passes of a micro batch as two CUDA graphs, each launched by one call.

    batch -> fixed inputs -> copied to where the graph reads -> forward graph -> loss
    loss.backward() -> backward graph -> gradients, copied out -> accumulated by autograd

The time of a small model's step is the time that the host needs to launch its kernels; a graph
launches all of them with one call. Accumulating gradients stays outside of the graph because it
triggers ZeRO's hooks, which update state in Python and communicate: a replay would skip them. The
optimizer and the communication before it stay outside, too.

No GPU has run this yet. The tests record and replay PyTorch's operations on a CPU.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

WARM_UP_PASSES = 3
"""Passes before recording: compilers and libraries allocate and cache on their first calls."""


class Output(Protocol):
    @property
    def loss(self) -> Tensor: ...
    @property
    def metrics(self) -> dict[str, Tensor]: ...


class Graphable(Protocol):
    """A module whose pass over a batch is `compute(*fixed_inputs(batch))`.

    `fixed_inputs` does everything that depends on values or on the host, and returns tensors on the
    device, of the same shapes every time. `compute` neither synchronises nor branches on values.
    """

    training: bool

    @property
    def forward(self) -> Callable[..., Any]: ...
    @property
    def compute(self) -> Callable[..., Output]: ...
    def fixed_inputs(self, batch: Any) -> tuple[Tensor, ...]: ...
    def parameters(self) -> Iterator[Parameter]: ...


class GraphedOutput(NamedTuple):
    """Copies of the results of a replay, because the next replay overwrites the same memory."""

    loss: Tensor
    metrics: dict[str, Tensor]


class GraphedForward:
    """Replaces a module's `forward`. In training the first batch is recorded, and every batch,
    including the first, is computed by a replay. In evaluation the module's own `forward` runs.
    """

    def __init__(self, module: Graphable) -> None:
        self._module, self._own = module, module.forward
        self._recording: Recording | None = None

    def __call__(self, batch: Any) -> Any:
        if not self._module.training:
            return self._own(batch)
        inputs = self._module.fixed_inputs(batch)
        if self._recording is None:
            self._recording = Recording(self._module.compute, self._module.parameters(), inputs)
        return self._recording.run(inputs)


class Recording:
    """A computation and its backward pass, recorded once, in a private memory pool.

    Random numbers are those of eager mode: a replay reads the current state of the generator.

    Args:
        compute: The computation to record.
        parameters: Gradients are computed for those that require them. Their values may change in
            place, but their memory must not move.
        examples: Inputs with the shapes and types that all later inputs must have.
    """

    def __init__(
        self,
        compute: Callable[..., Output],
        parameters: Iterable[Parameter],
        examples: Sequence[Tensor],
    ) -> None:
        self._parameters = [each for each in parameters if each.requires_grad]
        self._addresses = [each.data_ptr() for each in self._parameters]
        self._inputs = [each.clone() for each in examples]
        self._turn = 0
        random = torch.cuda.get_rng_state()
        self._warm_up(compute)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads use CUDA during the recording: the loader, a checkpoint, NCCL's watchdog.
        how: dict[str, Any] = {
            "pool": torch.cuda.graph_pool_handle(),
            "capture_error_mode": "thread_local",
        }
        with torch.cuda.graph(self._forward, **how):
            out = compute(*self._inputs)
        self._loss, self._metrics = out.loss, out.metrics
        self._loss_gradient = torch.empty_like(self._loss)
        with torch.cuda.graph(self._backward, **how):
            self._gradients = self._differentiate(self._loss, self._loss_gradient)
        torch.cuda.set_rng_state(random)

    def _warm_up(self, compute: Callable[..., Output]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_PASSES):
                loss = compute(*self._inputs).loss
                self._differentiate(loss, torch.ones_like(loss))
        torch.cuda.current_stream().wait_stream(stream)

    def _differentiate(self, loss: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Returns gradients instead of accumulating them, so that no ZeRO hook is called.
        return torch.autograd.grad(loss, self._parameters, gradient, allow_unused=True)

    def run(self, inputs: Sequence[Tensor]) -> GraphedOutput:
        """Compute by a replay. The backward pass of the loss must run before the next call.

        Raises:
            ValueError: When the inputs differ from the examples in shape or type.
            RuntimeError: When a parameter has moved in memory.
        """
        self._check(inputs)
        for fixed, given in zip(self._inputs, inputs, strict=True):
            fixed.copy_(given, non_blocking=True)
        loss: Tensor = _Replay.apply(self, *self._parameters)
        return GraphedOutput(loss, {name: value.clone() for name, value in self._metrics.items()})

    def replay_forward(self) -> tuple[Tensor, int]:
        """The loss, and the number of this replay, which `replay_backward` expects."""
        self._forward.replay()
        self._turn += 1
        return self._loss.detach().clone(), self._turn

    def replay_backward(self, gradient: Tensor, turn: int) -> list[Tensor | None]:
        """Copies of the gradients, because autograd keeps the first tensors that it is given."""
        if turn != self._turn:
            raise RuntimeError(
                "a CUDA graph keeps the activations of its last forward pass alone: each one needs "
                "its backward pass before the next; cluster.cuda_graph=false would work"
            )
        self._loss_gradient.copy_(gradient)
        self._backward.replay()
        recorded = [each for each in self._gradients if each is not None]
        copies = [torch.empty_like(each) for each in recorded]
        torch._foreach_copy_(copies, recorded)
        left = iter(copies)
        return [None if each is None else next(left) for each in self._gradients]

    def _check(self, inputs: Sequence[Tensor]) -> None:
        recorded, given = (
            [(tuple(each.shape), each.dtype) for each in tensors]
            for tensors in (self._inputs, inputs)
        )
        if recorded != given:
            raise ValueError(
                f"a CUDA graph takes what it was recorded with, {recorded}, and got {given}; "
                "cluster.cuda_graph=false would work"
            )
        if self._addresses != [each.data_ptr() for each in self._parameters]:
            raise RuntimeError(
                "parameters have moved in memory since the CUDA graph was recorded, which would go "
                "on with the old ones; cluster.cuda_graph=false would work"
            )


class _Replay(torch.autograd.Function):
    """Makes the two replays the forward and backward pass of one autograd function."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, *parameters: Tensor) -> Tensor:
        ctx.recording = recording
        loss, ctx.turn = recording.replay_forward()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.recording.replay_backward(gradient, ctx.turn)
