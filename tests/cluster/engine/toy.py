"""A small model and its data, for training it in several ways that should agree."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.batch_layout import BatchLayout
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.engine.settings import EngineSettings
from cluster.group import mean_and_each

BATCH = 8
BETAS = (0.9, 0.95)
Batch = tuple[Tensor, Tensor]
Weights = dict[str, Tensor]


class Output(NamedTuple):
    """A tuple, because the hooks of ZeRO-3 look for tensors inside outputs."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Toy(nn.Module):
    """Three layers, one per optimizer group; `still` has lr_scale 0."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.still, self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, batch: Batch) -> Output:
        x, y = batch
        hidden = self.body(self.still(x.to(self.still.weight.dtype)).tanh()).tanh()
        logits = self.head(hidden).float()
        hits = (logits.argmax(1) == y).float().mean()
        return Output(nn.functional.cross_entropy(logits, y), {"accuracy": hits.detach()})

    def groups(self) -> list[dict[str, Any]]:
        settings = [(self.still, 0.0, 0.1), (self.body, 0.5, 0.0), (self.head, 1.0, 0.1)]
        return [
            {"params": list(layer.parameters()), "lr_scale": scale, "weight_decay": decay}
            for layer, scale, decay in settings
        ]


def global_batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(BATCH, 8, generator=generator)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def rate(step: int) -> float:
    return 0.05 * (1 + step % 3)


def plain(steps: int, clip: float = 0.0, ema_decay: float = 0.0) -> dict[str, Any]:
    """One process on whole batches in plain PyTorch: what happened at each step."""
    toy = Toy()
    optimizer = torch.optim.AdamW(toy.groups(), betas=BETAS)
    seen: dict[str, Any] = {"loss": [], "grad_norm": [], "weights": [], "average": []}
    average: Weights = {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["lr_scale"]
        out = toy(global_batch(step))
        optimizer.zero_grad()
        out.loss.backward()
        limit = clip or float("inf")
        norm = nn.utils.clip_grad_norm_(toy.parameters(), limit)
        optimizer.step()
        weights = {name: value.clone() for name, value in toy.state_dict().items()}
        decay = min(ema_decay, step / (step + 1))
        average = {
            name: decay * average.get(name, torch.zeros(())) + (1 - decay) * value
            for name, value in weights.items()
        }
        seen["loss"].append(out.loss.item())
        seen["grad_norm"].append(norm.item())
        seen["weights"].append(weights)
        seen["average"].append(average)
    return seen


def new_engine(
    settings: EngineSettings, seed: int = 0, micro: int = 1, *, frozen: bool = False
) -> DeepSpeedEngine:
    """An engine on `Toy`; `frozen` has its first layer not trained at all."""
    toy = Toy(seed)
    groups = toy.groups()
    if frozen:
        toy.still.requires_grad_(False)
        groups = groups[1:]
    return DeepSpeedEngine(
        toy,
        groups,
        betas=BETAS,
        settings=settings,
        batch_layout=BatchLayout(BATCH, micro, dist.get_world_size()),
        device=torch.device("cpu"),
        identify=lambda batch: batch[1].tolist(),
    )


def micro_batches(step: int, micro: int = 1) -> Iterator[Batch]:
    """This worker's part of a global batch."""
    x, y = (part[dist.get_rank() :: dist.get_world_size()] for part in global_batch(step))
    return zip(x.split(micro), y.split(micro), strict=True)


def go_on(engine: DeepSpeedEngine, first: int, last: int, micro: int = 1) -> list[dict[str, float]]:
    return [
        mean_and_each(engine.train_step(micro_batches(step, micro), rate(step)), 0.0)[0]
        for step in range(first, last)
    ]


def group_settings(engine: DeepSpeedEngine) -> dict[str, Any]:
    """What the optimizer's groups are set to, and the scales of the layers that are kept here."""
    groups = engine._optimizer.param_groups
    stretches = engine._partition._adam.stretches  # type: ignore[attr-defined]
    return {
        "lr": [group["lr"] for group in groups],
        "weight_decay": [group["weight_decay"] for group in groups],
        "scales": sorted({scale for flat in stretches.values() for _, _, scale in flat}),
    }


def notes(engine: DeepSpeedEngine) -> dict[str, Any]:
    """What an engine needs to find noted with a checkpoint."""
    return {"updates": engine.updates, "skipped_steps": engine.skipped_steps}


def computed_with(engine: DeepSpeedEngine) -> Weights:
    """The whole weights that the module computes with, in its own precision."""
    import deepspeed

    module = engine.module
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        return {name: value.detach().clone() for name, value in module.named_parameters()}


def kept(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """Copies of everything this worker keeps."""
    return {
        f"{kind}:{fragment.name}:{fragment.start}": tensor.clone()
        for fragment in engine.fragments
        for kind, tensor in fragment.tensors.items()
    }
