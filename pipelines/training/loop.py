"""The training loop, as every worker runs it.

    resume -> { batches, step, log, evaluate, compare, checkpoint } -> end

Everything random is a function of (seed, step) or (seed, epoch, sample), so the whole position is
one integer, the step. A run that is killed and resumed on the same number of workers has bitwise
the result of an uninterrupted one; on another number it sees the same global batches.
"""

from cluster import group
from cluster.resilience.goodput import Stopwatch
from cluster.workers import current
from pipelines.runtime.logs import worker_log
from pipelines.training.anomalies.spikes import LossSpike
from pipelines.training.job import TrainJob
from pipelines.training.run import Run


def train(job: TrainJob) -> None:
    """Train on this worker to the job's last step.

    Raises:
        Stopped: After a checkpoint, when the workers were asked to save and stop.
        Superseded: When a newer group of workers trains this stage.
        Diverged: When the weights of the workers are no longer the same.
        LossSpiked: When the loss has spiked, and the steps around it are to be left out.
    """
    with worker_log(job.log, group.rank()):
        clock = Stopwatch(current.worker().beacon)
        with clock.phase("start-up"):
            run = Run.assemble(job, clock)
            step = run.resume()
            if step == run.plan.total_steps:  # Workers before these failed with the last step done.
                current.worker().milestone("first step")
            run.strike("start-up", step)
        try:
            train_from(step, run)
        except LossSpike as spike:
            raise run.leave_out(spike) from None


def train_from(step: int, run: Run) -> None:
    """Train from `step` on; raises LossSpike, and otherwise as `train`."""
    here, clock, compare_every = current.worker(), run.clock, run.job.cluster.divergence_check_every
    for done, batches in run.feed.global_batches(step):
        with clock.phase("step"):
            run.strike("step", done)
            samples = run.samples.recorded(done, batches)
            metrics = run.engine.train_step(samples, run.plan.schedule.at(done))
        step = run.feed.reached(done + 1)
        here.beacon.stepped(step)
        here.milestone("first step")
        last = step == run.plan.total_steps
        if step % run.job.log_every == 0 or last:
            with clock.phase("log"):
                run.log(step, metrics)
        if run.validator is not None and (step % run.plan.evaluate_every == 0 or last):
            with clock.phase("evaluate"):
                run.strike("evaluate", step)
                run.evaluate(step)
        leaves = run.engine.stop_agreed and not last
        saves = run.save_is_due(step) or last or leaves
        if compare_every and (step % compare_every == 0 or saves):
            with clock.phase("compare"):
                run.strike("compare", step)
                run.engine.check_replicas(step)
        if saves:
            with clock.phase("checkpoint"):
                run.save(step)
                run.strike("checkpoint", step)
        if leaves:
            run.finish(step)
            raise current.Stopped
    if step < run.plan.total_steps:  # Nothing was trained, for all the rest is left out.
        step = run.feed.reached(step)
        run.save(step)
    run.finish(step)
