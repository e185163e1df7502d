"""Code that stages use and that cannot change a result: it is in no stage's key.

Names of packages, modules or definitions; what is below one is exempt, too. Whatever is not here
counts. When in doubt leave it out: a stage that is done again costs time, a stale result is wrong.
"""

EXEMPT = frozenset(
    {
        # Settings are in a stage's key by value, those that decide its result.
        "pipelines.config",
        # Keys, and the books about what is done; not the records of stages, which the report shows.
        "pipelines.graph.__init__",
        "pipelines.graph.complete",
        "pipelines.graph.keys",
        "pipelines.graph.stage",
        "pipelines.stages.__init__",
        # Workers, logs, tracking, what a person sees; not the reading of events, of which the
        # report is made.
        "pipelines.runtime.session",
        "pipelines.runtime.logs",
        "pipelines.runtime.events.EventLog",
        "pipelines.runtime.events.EVENTS_FILE",
        "pipelines.runtime.events.Start",
        "pipelines.runtime.events.SharedGPU",
        "pipelines.runtime.events.Point",
        "pipelines.runtime.events.Validation",
        "pipelines.runtime.events.Skipped",
        "pipelines.runtime.events.Rejected",
        "pipelines.runtime.events.End",
        # Bytes safely on disk, the same ones.
        "convnextv2.durable",
        "cluster.durable",
        # When checkpoints are written, and which are kept and found; not what is in them.
        "cluster.checkpoint.retention",
        "cluster.checkpoint.store",
        "pipelines.training.checkpoints",
        # Which worker is on which machine and device, and whether a stage fits there.
        "cluster.placement",
        "cluster.workers",
        "pipelines.training.gpu",
        # Failures made on purpose, what they are checked by, and clocks.
        "cluster.resilience.fault_injection",
        "pipelines.training.data.sample_log",
        "cluster.resilience.goodput.Stopwatch",
        # Who may publish a checkpoint or a result, and how far that is.
        "cluster.resilience.lease",
        "pipelines.stages.scoring",
        # How lines get into a log.
        "cluster.resilience.journal",
        "pipelines.training.pace",
        # Images that are read from a nearer disk are the same.
        "convnextv2.data.shards.local_cache",
        # Notes what was left out; looks whether weights are the same.
        "pipelines.training.anomalies.nonfinite",
        "cluster.engine.divergence",
        # Refuses what was not tested.
        "cluster.engine.deepspeed_insides",
    }
)
