"""ZeRO settings: typed, checked, and turned into DeepSpeed's dictionary in one place.

ZeRO (arXiv 1910.02054) shares the optimizer state (stage 1), the gradients as well (2), and the
parameters as well (3) among the workers. ConvNeXt V2 Huge with AdamW takes 10.6 GB per GPU without
any of it, so stage 1 is enough nearly everywhere (docs/training.md).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.batch_layout import BatchLayout

Precision = Literal["fp32", "bf16"]
Bytes = Annotated[int, Field(gt=0)]
Where = Literal["none", "cpu", "nvme"]


class ZeroSettings(BaseModel):
    """How model states are shared among workers, and where they are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stage: Literal[0, 1, 2, 3] = 1
    """What is shared: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
    offload_optimizer: Where = "none"
    """cpu: keep fp32 weights and moments in the host's memory, where AdamW then runs. nvme is not
    supported: what lies there cannot be checkpointed as the rest is."""
    offload_param: Where = "none"
    """Stage 3: keep the parameters that are not in use there."""
    nvme_path: Path | None = None
    """Folder on each node's NVMe disk."""
    pin_memory: bool = True
    """Page-locked host memory for what is offloaded: faster, cannot be swapped out."""
    overlap_comm: bool | None = None
    """Reduce gradients while the backward pass runs; DeepSpeed's default: in stage 3 only."""
    reduce_bucket_size: Bytes = 50_000_000
    """Elements reduced at a time. DeepSpeed's own default is ten times that, and takes GB."""
    allgather_bucket_size: Bytes = 50_000_000
    """Elements gathered at a time, after the step of stages 1 and 2."""
    round_robin_gradients: bool = False
    """Stages 1 and 2: deal parameters out in turn, so that workers copy gradients evenly."""
    prefetch_bucket_size: Bytes = 50_000_000
    """Stage 3: elements gathered ahead of their use."""
    param_persistence_threshold: Annotated[int, Field(ge=0)] = 100_000
    """Stage 3: parameters up to this many elements stay whole everywhere."""
    sub_group_size: Bytes = 100_000_000
    """Stage 3: elements that the optimizer updates at a time. DeepSpeed's own default is ten times
    that."""
    max_live_parameters: Bytes = 1_000_000_000
    """Stage 3: elements that may be whole at a time."""
    hpz_partition_size: Annotated[int, Field(gt=0)] = 1
    """ZeRO++ (arXiv 2306.10209), stage 3: a second copy of the parameters, shared among so many
    workers of a node, so that the backward pass gathers inside the node."""
    quantized_weights: bool = False
    """ZeRO++, stage 3: gather parameters in 8 bits."""
    quantized_gradients: bool = False
    """ZeRO++, stage 3: reduce gradients in 4 and 8 bits."""


STAGE_3_ONLY = (
    "offload_param",
    "prefetch_bucket_size",
    "param_persistence_threshold",
    "sub_group_size",
    "max_live_parameters",
    "hpz_partition_size",
    "quantized_weights",
    "quantized_gradients",
)


def find_problems(
    zero: ZeroSettings, *, use_gpu: bool, precision: Precision, world_size: int
) -> list[str]:
    """What contradicts itself, one line each, beginning with the field's name."""
    changed = zero.model_fields_set & {
        name for name, field in ZeroSettings.model_fields.items()
        if getattr(zero, name) != field.default
    }  # fmt: skip
    problems = [
        f"{name}: means something in stage 3 only, this is stage {zero.stage}"
        for name in STAGE_3_ONLY
        if name in changed and zero.stage != 3
    ]
    if zero.round_robin_gradients and zero.stage not in (1, 2):
        problems.append(f"round_robin_gradients: stages 1 and 2 only, this is stage {zero.stage}")
    if zero.stage == 0 and precision == "bf16" and use_gpu:
        problems.append(
            "stage: 0 in bf16 has DeepSpeed wait for the GPU and treat every parameter by itself; "
            "stage 1 is faster and needs no more memory"
        )
    if zero.offload_optimizer != "none" and zero.stage == 0:
        problems.append("offload_optimizer: stage 0 keeps whole states; stage 1, 2 or 3 offloads")
    if zero.offload_optimizer == "nvme":
        problems.append(
            "offload_optimizer: checkpoints and the EMA are taken from memory, and on nvme the "
            "optimizer's state is not there; cpu would work (offload_param may go to nvme)"
        )
    to_disk = "nvme" in (zero.offload_optimizer, zero.offload_param)
    if to_disk and zero.nvme_path is None:
        problems.append("nvme_path: offloading to nvme needs a folder on each node's own disk")
    if zero.nvme_path is not None and not to_disk:
        problems.append("nvme_path: set, but nothing is offloaded to nvme")
    for name in ("quantized_weights", "quantized_gradients"):
        if getattr(zero, name) and not use_gpu:
            problems.append(f"{name}: its kernels are for GPUs; set use_gpu, or leave it out")
    if world_size % zero.hpz_partition_size:
        problems.append(
            f"hpz_partition_size: {zero.hpz_partition_size} does not divide {world_size} workers"
        )
    return problems


def deepspeed_config(
    zero: ZeroSettings, precision: Precision, grad_clip: float, batch_layout: BatchLayout
) -> dict[str, Any]:
    """The DeepSpeed configuration for the settings; the only place that spells its keys."""
    return {
        "train_batch_size": batch_layout.global_batch_size,
        "train_micro_batch_size_per_gpu": batch_layout.micro_batch_size,
        "gradient_accumulation_steps": batch_layout.accumulation,
        # Clipping by DeepSpeed has it ask for the norm, which our optimizer needs not wait for.
        "gradient_clipping": grad_clip if zero.offload_optimizer != "none" else 0.0,
        "zero_optimization": _zero_optimization(zero),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Gradients are checked by the engine, in every precision and stage.
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": False},
        "steps_per_print": 1 << 62,
        "wall_clock_breakdown": False,
        # Its timer waits for the GPU in every forward pass and every step.
        "timers": {"throughput": {"enabled": False}},
    }


def _zero_optimization(zero: ZeroSettings) -> dict[str, Any]:
    section: dict[str, Any] = {
        "stage": zero.stage,
        # Stage 1 keeps whole gradients anyway; copying each into a buffer costs 4% of a step.
        "contiguous_gradients": zero.stage > 1,
        "reduce_bucket_size": zero.reduce_bucket_size,
        "allgather_bucket_size": zero.allgather_bucket_size,
        "round_robin_gradients": zero.round_robin_gradients,
    }
    if zero.stage in (1, 2):
        # The engine has the norm already; DeepSpeed needs its own to offload.
        section["compute_grad_norm"] = zero.offload_optimizer != "none"
    if zero.overlap_comm is not None:
        section["overlap_comm"] = zero.overlap_comm
    for name in ("offload_optimizer", "offload_param"):
        device = getattr(zero, name)
        if device != "none":
            path = {"nvme_path": str(zero.nvme_path)} if device == "nvme" else {}
            section[name] = {"device": device, "pin_memory": zero.pin_memory, **path}
    if zero.stage == 3:
        section |= {
            "stage3_prefetch_bucket_size": zero.prefetch_bucket_size,
            "stage3_param_persistence_threshold": zero.param_persistence_threshold,
            "sub_group_size": zero.sub_group_size,
            "stage3_max_live_parameters": zero.max_live_parameters,
            "zero_hpz_partition_size": zero.hpz_partition_size,
            "zero_quantized_weights": zero.quantized_weights,
            "zero_quantized_gradients": zero.quantized_gradients,
        }
    return section
