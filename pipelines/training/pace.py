"""The speed of training: images/s, the share of the GPUs' peak (MFU), and the slowest worker.

Workers wait for each other in every step, so all take as long as the slowest. The time that is a
worker's own is that of its data and its forward passes; in the backward pass workers already wait
for each other, to reduce gradients. Under ZeRO-3 they wait in the forward pass, too, to gather
parameters, and the slow worker cannot be told from those that wait for it.
"""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from cluster.resilience.goodput import Stopwatch
from convnextv2.tasks.pretrain import PretrainTask
from pipelines.bench.flops import encoder_macs, fcmae_macs, peak_of
from pipelines.config import FinetuneConfig, PretrainConfig
from pipelines.training.data.transforms import image_size_of
from pipelines.training.job import TrainJob

FORWARD_AND_BACKWARD = 6
"""FLOPs of a training step per multiply-add of its forward pass."""


class Pace:
    """Measures the steps between two points of the log.

    Args:
        job: The training job.
        clock: The stopwatch of the loop; its phase "data" is the wait for data.
    """

    def __init__(self, job: TrainJob, clock: Stopwatch) -> None:
        self._job, self._clock = job, clock
        self._flops = 0.0
        self._forward = self._data = self._since = 0.0
        self._step = 0
        self._on_device: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def watch(self, task: nn.Module) -> None:
        """Measure the forward passes of `task` from now on."""
        self._flops = flops_of_image(self._job, task)
        task.register_forward_pre_hook(self._forward_begins)
        task.register_forward_hook(self._forward_ends)

    def begin(self, step: int) -> None:
        """Start to measure, after `step` steps."""
        self._forward, self._data = 0.0, self._clock.seconds.get("data", 0.0)
        self._on_device.clear()
        self._step, self._since = step, time.monotonic()

    def own_seconds(self, step: int) -> float:
        """This worker's own seconds per step since `begin`; 0 if they cannot be told.

        Waits until the device has finished these steps.
        """
        forward = self._forward
        for began, ended in self._on_device:
            ended.synchronize()
            forward += began.elapsed_time(ended) / 1000
        if not forward:
            return 0.0
        data = self._clock.seconds.get("data", 0.0) - self._data
        return (forward + data) / (step - self._step)

    def values(self, step: int, each: Sequence[float]) -> dict[str, float]:
        """Values to log for the steps since `begin`; `each` has every worker's `own_seconds`."""
        steps, seconds = step - self._step, time.monotonic() - self._since
        images_per_second = steps * self._job.recipe.global_batch_size / seconds
        values = {"images_per_second": images_per_second}
        peak = self._peak()
        if peak and self._flops:
            values["mfu"] = images_per_second * self._flops / (peak * len(each))
        if len(each) > 1 and all(each):
            slowest = max(range(len(each)), key=each.__getitem__)
            values |= {
                "slowest_rank": slowest,
                "slowest_seconds": each[slowest],
                "median_seconds": statistics.median(each),
            }
        return values

    def _peak(self) -> float | None:
        """Peak FLOP/s of this worker's GPU in the training precision; None if it is not known."""
        if not self._job.cluster.use_gpu or self._job.recipe.dtype != "bf16":
            return None
        return peak_of(torch.cuda.get_device_name())

    def _forward_begins(self, task: nn.Module, _: object) -> None:
        if not task.training:
            return
        if not self._job.cluster.use_gpu:
            self._forward -= time.perf_counter()
        elif not torch.cuda.is_current_stream_capturing():
            began = torch.cuda.Event(enable_timing=True)
            began.record()
            self._on_device.append((began, torch.cuda.Event(enable_timing=True)))

    def _forward_ends(self, task: nn.Module, _: object, __: object) -> None:
        if not task.training:
            return
        if not self._job.cluster.use_gpu:
            self._forward += time.perf_counter()
        elif not torch.cuda.is_current_stream_capturing():
            self._on_device[-1][1].record()


def flops_of_image(job: TrainJob, task: nn.Module) -> float:
    """FLOPs of one image's forward and backward pass; 0 for models that are not counted."""
    recipe, model = job.recipe, job.model
    if isinstance(task, PretrainTask):
        assert isinstance(recipe, PretrainConfig)
        if recipe.decoder != "convnext":
            return 0.0
        return FORWARD_AND_BACKWARD * fcmae_macs(model.size, task.model)
    assert isinstance(recipe, FinetuneConfig)
    macs = encoder_macs(model.size, image_size_of(recipe, model), stem_stride=model.stem_stride)
    return macs * (2 if recipe.trainable == "head" else FORWARD_AND_BACKWARD)
