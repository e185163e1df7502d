"""The insides of DeepSpeed that `cluster.engine.zero_partitions` uses, and who has them.

None of this is DeepSpeed's interface, so any release may move it. Then training must stop at its
start and say so, before a wrong tensor is trained or saved.
"""

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

TESTED_VERSIONS = ("0.19.8",)


class Insides(NamedTuple):
    """Attributes of an optimizer and of the parameters it trains; dots lead further in."""

    optimizer: tuple[str, ...] = ()
    parameter: tuple[str, ...] = ()


INSIDES = {
    # Ours; DeepSpeed leaves it alone in stage 0 and fp32.
    "LayerwiseAdamW": Insides(),
    "FP16_UnfusedOptimizer": Insides(("optimizer", "fp16_groups", "fp32_groups")),
    "DeepSpeedZeroOptimizer": Insides(
        (
            "optimizer",
            "allreduce_and_copy",
            "allreduce_bucket",
            "averaged_gradients",
            "bit16_groups",
            "check_grad_overflow",
            "cpu_offload",
            "has_overflow",
            "overlap_comm",
            "partition_gradients",
            "single_partition_of_fp32_groups",
            "unflatten",
            "update_lp_params",
        ),
        (
            "_hp_mapping.lp_fragment_address.start",
            "_hp_mapping.hp_fragment_address.start",
            "_hp_mapping.hp_fragment_address.numel",
        ),
    ),
    "DeepSpeedZeroOptimizer_Stage3": Insides(
        (
            "optimizer",
            "_get_norm_groups",
            "_loss_scale_update_and_overflow_cleanup",
            "_overflow_check_and_loss_scale_update",
            "_partition_all_parameters",
            "_reassign_or_swap_out_partitioned_parameters",
            "averaged_gradients",
            "fp16_groups",
            "fp32_partitioned_groups_flat",
            "get_param_id",
            "grad_position",
            "invalidate_secondary_tensor",
            "offload_optimizer",
            "overflow",
            "persistent_parameters",
        ),
        ("ds_numel", "ds_shape", "ds_tensor.ds_numel"),
    ),
}


def check_insides(optimizer: Any, parameters: Iterable[Any]) -> str:
    """The name of the optimizer's class, which is in `INSIDES`, with all that is listed there.

    Raises:
        RuntimeError: When this version of DeepSpeed has another class, or lacks an attribute.
    """
    name = type(optimizer).__name__
    if name not in INSIDES:
        raise _changed(f"trains with {name}, not with one of {', '.join(INSIDES)}")
    insides = INSIDES[name]
    missing = {f"{name}.{path}": None for path in _missing(optimizer, insides.optimizer)}
    for parameter in parameters:
        missing |= {f"parameter.{path}": None for path in _missing(parameter, insides.parameter)}
    if missing:
        raise _changed(f"has no {', '.join(missing)}")
    return name


def _missing(owner: Any, paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        found = owner
        for attribute in path.split("."):
            if not hasattr(found, attribute):
                yield path
                break
            found = getattr(found, attribute)
            # A parameter of which this worker keeps nothing has no address here.
            if found is None:
                break


def _changed(what: str) -> RuntimeError:
    tested = " or ".join(TESTED_VERSIONS)
    return RuntimeError(
        f"DeepSpeed {version('deepspeed')} {what}; convnextv2 reads its insides and was tested "
        f"with {tested}: pip install deepspeed=={TESTED_VERSIONS[-1]}"
    )
