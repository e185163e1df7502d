"""The driver of our system.

It trains as the stage `pretrain` does, with the loop, the loader and the checkpoints of a run.
"""

from functools import partial

from torch import nn

from cluster.launch import Cluster, Placement
from cluster.resilience import incidents
from cluster.resilience.watchdog import Limits
from pipelines.bench.faults.training import WORKERS, Assignment, demo, new_task
from pipelines.config import PretrainConfig
from pipelines.training.job import TrainJob
from pipelines.training.loop import train
from pipelines.training.standby import prepare

STEP_LIMIT = 5.0
"""`cluster.limits.step` here (s): a worker whose step takes longer, and five times longer than any
before, counts as hung."""


def job_of(assignment: Assignment) -> TrainJob:
    config = demo()
    assert config.pretrain is not None
    return TrainJob(
        model=config.model,
        data=config.data,
        recipe=config.pretrain,
        evaluate=config.evaluate,
        cluster=config.cluster,
        seed=0,
        log_every=1,
        build_task=build_task,
        directory=assignment.folder,
        log=assignment.folder / "worker",
        shards=assignment.shards,
        num_classes=10,
    )


def build_task(job: TrainJob) -> nn.Module:
    assert isinstance(job.recipe, PretrainConfig)
    return new_task(job.directory, job.model, job.recipe)


def drive(assignment: Assignment) -> None:
    placement = Placement(
        num_workers=WORKERS, address=assignment.address, warm_spare=assignment.warm_spare
    )
    job = job_of(assignment)
    with Cluster(placement) as cluster:
        cluster.run(
            train,
            job,
            name="pretrain",
            prepare=partial(prepare, job),
            limits=Limits(step=STEP_LIMIT),
            note=lambda incident: incidents.append(assignment.folder, incident),
        )
