"""What is wrong with a fault plan: what its cluster cannot do, and what its run has not."""

from cluster.laboratory.network import obstacle
from pipelines.config import PipelineConfig
from pipelines.faults.kinds import ANYWHERE, KINDS
from pipelines.faults.plan import FaultPlan, PlannedFault
from pipelines.training.anomalies.spikes import FEWEST


def problems_of_cluster(plan: FaultPlan) -> list[str]:
    problems = []
    local, address = plan.cluster.local, plan.cluster.address
    if (local is None) == (address is None):
        problems.append("cluster: expected either local: {nodes: N} or address: HOST:PORT")
    if plan.run.preset is not None and plan.run.config is not None:
        problems.append("run: expected a preset or a config, not both")
    if not plan.faults and plan.random is None:
        problems.append("faults: there are none; give faults, or random, or both")
    if address is not None:
        problems += [
            f"{where}: {name!r} needs nodes that this command has started (cluster.local); on a "
            f"cluster that is elsewhere, these work: {', '.join(ANYWHERE)}"
            for where, name in plan.kinds()
            if KINDS[name].local
        ]
    elif plan.needs_network and (why := obstacle()) is not None:
        problems += [
            f"{where}: {name!r} needs nodes with a network of their own: {why}"
            for where, name in plan.kinds()
            if KINDS[name].link is not None
        ]
    for number, fault in enumerate(plan.faults):
        problems += [f"faults.{number}.{problem}" for problem in _problems_of_fault(plan, fault)]
    lost = sum(KINDS[name].loses_node for _, name in plan.kinds())
    if local is not None and not local.replace and lost >= local.nodes:
        problems.append(
            f"cluster.local.nodes: all {local.nodes} may be lost; cluster.local.replace=true, or "
            f"{lost + 1} nodes, would work"
        )
    return problems


def _problems_of_fault(plan: FaultPlan, fault: PlannedFault) -> list[str]:
    problems = []
    kind, node = KINDS[fault.what], fault.where.node
    if node is not None and not kind.of_node:
        problems.append(f"where: {fault.what!r} befalls a worker: rank N or random")
    elif node is not None and plan.cluster.local is not None:
        names = [f"node-{number + 2}" for number in range(plan.cluster.local.nodes)]
        if node not in names:
            problems.append(f"where: there is no {node}; the nodes are {', '.join(names)}")
    if kind.injected in ("nan", "spike") and fault.when.phase != "step":
        problems.append(f"when: {fault.what!r} befalls a step: step {fault.when.step} would work")
    if kind.injected == "flip" and fault.when.phase != "compare":
        problems.append(
            "when: 'flip weight' befalls weights before they are compared: "
            f"compare {fault.when.step} would work"
        )
    return problems


def problems_of_run(plan: FaultPlan, config: PipelineConfig) -> list[str]:
    problems = []
    section = plan.run.section
    recipe = config.recipes().get(section)
    if recipe is None:
        there = ", ".join(name.replace("_", "-") for name in config.recipes())
        return [f"run.stage: the run has no {plan.run.stage}; it has {there}"]
    if (plan.run.preset or plan.run.config) and config.data.source is None:
        problems.append("run: no images; data.source=DIR in run.set would work")
    workers, *more = config.cluster.sizes_for(recipe)
    most = more[-1] if more else workers
    for number, fault in enumerate(plan.faults):
        if fault.where.rank is not None and fault.where.rank >= most:
            problems.append(
                f"faults.{number}.where: there are no more than {most} workers; rank 0 to "
                f"{most - 1} would work"
            )
        if fault.when.phase == "evaluate" and recipe.evaluate_every is None:
            problems.append(f"faults.{number}.when: the run has no {section}.evaluate_every")
    kinds = {KINDS[name].injected for _, name in plan.kinds()}
    compares = config.cluster.divergence_check_every and config.cluster.zero.stage < 3
    if "flip" in kinds and (workers == 1 or not compares):
        problems.append(
            "'flip weight' needs a run that compares the weights of workers: two of them, "
            "cluster.divergence_check_every above 0, cluster.zero.stage below 3"
        )
    if "spike" in kinds:
        problems += _problems_of_spikes(plan, recipe.spike_factor is not None)
    return problems + _problems_of_nodes(plan, config, workers)


def _problems_of_spikes(plan: FaultPlan, looks_for_them: bool) -> list[str]:
    """Why a spike would go unnoticed: the run does not look for any, or has too few losses yet."""
    problems = []
    if not looks_for_them:
        problems.append(
            "'spike' needs a run that looks for spikes of the loss: "
            f"{plan.run.section}.spike_factor=10 in run.set would work"
        )
    for number, fault in enumerate(plan.faults):
        if fault.what == "spike" and fault.when.step < FEWEST:
            problems.append(
                f"faults.{number}.when: a loss is compared with {FEWEST} before it; "
                f"step {FEWEST} would work"
            )
    if (
        plan.random is not None
        and "spike" in plan.random.kinds
        and plan.random.every_steps < FEWEST
    ):
        problems.append(
            f"random.every_steps: the loss of a 'spike' is compared with {FEWEST} before it; "
            f"{FEWEST} would work"
        )
    return problems


def _problems_of_nodes(plan: FaultPlan, config: PipelineConfig, workers: int) -> list[str]:
    local = plan.cluster.local
    if local is None:
        return []
    problems = []
    if config.cluster.use_gpu or config.cluster.cpus_per_worker > 1:
        problems.append(
            "run: nodes of cluster.local have one CPU each; cluster.use_gpu=false and "
            "cluster.cpus_per_worker=1 would work"
        )
    if local.nodes < workers:
        problems.append(
            f"cluster.local.nodes: {local.nodes} have no room for {workers} workers; {workers} "
            "would work"
        )
    return problems
