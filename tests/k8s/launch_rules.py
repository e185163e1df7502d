"""What a RayJob's entry point asks for: does it parse, does it exist, does the cluster have it."""

import argparse
import fnmatch
import shlex
from collections.abc import Iterator
from urllib.parse import urlsplit

from pipelines.config import PipelineConfig
from tests.k8s.documents import Document, Pod, of_kind, quantity
from tests.k8s.operator_rules import environment, ray_pods
from tests.k8s.rules import Rule

GPU = "nvidia.com/gpu"


class NoEntrypoint(ValueError):
    """The entry point is nothing our command line would run."""


def entrypoint_runs(documents: list[Document]) -> Iterator[str]:
    for job in of_kind(documents, "RayJob"):
        try:
            parse(job["spec"]["entrypoint"])
        except NoEntrypoint as error:
            yield f"RayJob {job['metadata']['name']}: {error}"


def parse(entrypoint: str) -> tuple[argparse.Namespace, PipelineConfig]:
    """Through the project's own parser and presets.

    Raises:
        NoEntrypoint: With the parser's or the preset's own words.
    """
    from pipelines.cli import build_parser
    from pipelines.presets import ConfigError, load_preset

    program, *arguments = shlex.split(entrypoint)
    if program != "convnextv2":
        raise NoEntrypoint(f"{program!r} is not our command")
    try:
        parsed = build_parser().parse_args(arguments)
        return parsed, load_preset(parsed.preset, parsed.set)
    except SystemExit as error:
        raise NoEntrypoint(f"convnextv2 does not understand {' '.join(arguments)!r}") from error
    except ConfigError as error:
        raise NoEntrypoint(str(error)) from error


def runnable(documents: list[Document]) -> Iterator[tuple[argparse.Namespace, PipelineConfig, Pod]]:
    """Each Ray pod with what it is to run; `entrypoint_runs` has a word for the others."""
    for job in of_kind(documents, "RayJob"):
        try:
            parsed, config = parse(job["spec"]["entrypoint"])
        except NoEntrypoint:
            continue
        for pod in ray_pods([job]):
            yield parsed, config, pod


def paths_are_mounted(documents: list[Document]) -> Iterator[str]:
    """On head and workers alike; the run folder on a claim, and writable."""
    for parsed, config, pod in runnable(documents):
        for where, container in pod.containers():
            named = {str(parsed.run_dir), str(parsed.data or config.data.source or parsed.run_dir)}
            settings = environment(documents, container).values()
            for path in sorted(named | {value for value in settings if value.startswith("/")}):
                if pod.mount_of(container, path) is None:
                    yield f"{where}: {path} is under no mounted volume"
            run = pod.mount_of(container, str(parsed.run_dir)) or {}
            if run.get("readOnly"):
                yield f"{where}: the run folder {parsed.run_dir} is read-only"
            claims = {v["name"] for v in pod.spec["volumes"] if "persistentVolumeClaim" in v}
            if run and run["name"] not in claims:
                yield f"{where}: the run folder {parsed.run_dir} is lost with the pod"


def tracking_server_answers(documents: list[Document]) -> Iterator[str]:
    """By a Service's name, on its port, which the server admits as Host header."""
    ports = {
        service["metadata"]["name"]: [port["port"] for port in service["spec"]["ports"]]
        for service in of_kind(documents, "Service")
    }
    for _, config, pod in runnable(documents):
        url = urlsplit(config.tracking.uri or "")
        if url.port not in ports.get(url.hostname or "", []):
            yield f"{pod.where}: tracking.uri {config.tracking.uri} is no Service here"
        elif not any(fnmatch.fnmatch(url.netloc, host) for host in admitted_hosts(documents)):
            yield f"{pod.where}: MLflow's --allowed-hosts refuses {url.netloc}"


def admitted_hosts(documents: list[Document]) -> list[str]:
    flag = "--allowed-hosts="
    return [
        host
        for deployment in of_kind(documents, "Deployment")
        for container in deployment["spec"]["template"]["spec"]["containers"]
        for argument in container.get("args", [])
        if argument.startswith(flag)
        for host in argument.removeprefix(flag).split(",")
    ]


def workers_fit_the_cluster(documents: list[Document]) -> Iterator[str]:
    for job in of_kind(documents, "RayJob"):
        try:
            _, config = parse(job["spec"]["entrypoint"])
        except NoEntrypoint:
            continue
        groups, cluster = job["spec"]["rayClusterSpec"]["workerGroupSpecs"], config.cluster
        where = f"RayJob {job['metadata']['name']}"
        slots = gpus = 0
        for group in groups:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            slots += group["replicas"] * int(quantity(limits["cpu"]) // cluster.cpus_per_worker)
            gpus += group["replicas"] * int(limits.get(GPU, 0))
        if slots < cluster.most_workers:
            yield f"{where}: CPUs for {slots} workers, cluster.num_workers is {cluster.num_workers}"
        if gpus != (cluster.most_workers if cluster.use_gpu else 0):
            yield f"{where}: {gpus} GPUs, cluster.num_workers is {cluster.num_workers}"
        if config.data.num_workers > cluster.cpus_per_worker:
            yield f"{where}: {config.data.num_workers} decoding threads on fewer CPUs per worker"


LAUNCH_RULES: tuple[Rule, ...] = (
    entrypoint_runs,
    paths_are_mounted,
    tracking_server_answers,
    workers_fit_the_cluster,
)
