"""The driver of plain Ray Train with DeepSpeed.

As their documentation has it: `TorchTrainer` with `FailureConfig`, `deepspeed.initialize` in the
training function, every worker's part of a checkpoint given to `ray.train.report`, and
`ray.train.get_checkpoint` at the start; on notice of a preemption a checkpoint at once
(docs.ray.io/en/latest/train: deepspeed.html, user-guides/fault-tolerance.html). All settings are
Ray's defaults. Callbacks write down when what happened, and change nothing.
"""

import itertools
import tempfile
from pathlib import Path

from cluster.placement import Placement
from pipelines.bench.faults.marks import STEP, Mark, append
from pipelines.bench.faults.training import WORKERS, Assignment

try:
    import ray.train.torch
    from ray.train.v2._internal.execution.callback import WorkerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.worker_group import (
        WorkerGroupContext,
        WorkerGroupPollStatus,
    )
except ImportError as error:
    raise ModuleNotFoundError(
        "the benchmark beside plain Ray Train needs it: pip install 'ray[train]'"
    ) from error

ASK_EVERY = 10
"""Steps between questions whether a node is about to go; all workers meet for each."""


class Watch(WorkerGroupCallback, WorkerCallback):
    """Writes marks, in the controller and in the workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after_worker_group_poll_status(self, worker_group_status: WorkerGroupPollStatus) -> None:
        if worker_group_status.errors:
            append(self._folder, Mark("detection"))

    def after_worker_group_shutdown(self, worker_group_context: WorkerGroupContext) -> None:
        append(self._folder, Mark("teardown"))

    def after_init_train_context(self) -> None:
        append(self._folder, Mark("process"))


def train(config: dict[str, str]) -> None:
    """The training function, which Ray calls in a process group."""
    folder = Path(config["folder"])
    rank, host = ray.train.get_context().get_world_rank(), ray.util.get_node_ip_address()

    def mark(name: str, step: int = 0) -> None:
        append(folder, Mark(name, rank, step, host))

    mark("process group")
    import deepspeed
    import torch
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    from convnextv2.tasks.batch import Batch
    from pipelines.bench.faults.training import BATCH, CHECKPOINT_EVERY, IMAGES, demo, new_task

    # As in our engine: DeepSpeed would compile an operation here that only inference uses, and wait
    # for ever where a killed worker had begun to.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    mark("imports")
    settings = demo()
    assert settings.pretrain is not None
    task = new_task(folder, settings.model, settings.pretrain)
    engine, _, _, _ = deepspeed.initialize(
        model=task,
        optimizer=torch.optim.AdamW(task.parameters(), lr=1e-3),
        config={
            "train_micro_batch_size_per_gpu": BATCH // WORKERS,
            "zero_optimization": {"stage": 1},
        },
    )
    mark("engine")
    step = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            _, state = engine.load_checkpoint(directory)
            step = state["step"]
    mark("weights", step)
    side = settings.model.image_size
    noise = torch.randint(0, 255, (IMAGES, side, side, 3), dtype=torch.uint8)
    dataset = TensorDataset(noise, torch.arange(IMAGES))
    sampler: DistributedSampler[int] = DistributedSampler(dataset)
    loader = DataLoader(dataset, BATCH // WORKERS, sampler=sampler)

    def save(loss: float) -> None:
        with tempfile.TemporaryDirectory() as directory:
            engine.save_checkpoint(directory, client_state={"step": step})
            checkpoint = ray.train.Checkpoint.from_directory(directory)
            ray.train.report({"loss": loss}, checkpoint=checkpoint)

    saved_on_notice = waited = False
    begun, skip = divmod(step, len(loader))
    for epoch in itertools.count(begun):
        sampler.set_epoch(epoch)
        for images, indices in itertools.islice(loader, skip, None):
            if not waited:
                mark("first batch")
                waited = True
            loss = engine(Batch(images, indices, indices, epoch)).loss
            engine.backward(loss)
            engine.step()
            step += 1
            mark(STEP, step)
            if step % CHECKPOINT_EVERY == 0:
                save(loss.item())
            if step % ASK_EVERY == 0 and ray.train.get_preemption_info() and not saved_on_notice:
                saved_on_notice = True
                save(loss.item())
        skip = 0


def drive(assignment: Assignment) -> None:
    environment = Placement(num_workers=WORKERS).environment
    # Where there are several clusters on a machine, Ray's own actors find theirs by this.
    environment |= {"RAY_ADDRESS": assignment.address}
    ray.init(address=assignment.address, runtime_env={"env_vars": environment})
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"folder": str(assignment.folder)},
        scaling_config=ray.train.ScalingConfig(num_workers=WORKERS),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=str(assignment.folder),
            failure_config=ray.train.FailureConfig(max_failures=-1),
            callbacks=[Watch(assignment.folder)],
        ),
    )
    trainer.fit()
