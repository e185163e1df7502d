"""The fields of KubeRay 1.7's RayJob down to its groups: names, types, and what must be there.

KubeRay's own schemas are no package that can be installed. Pods are left to Kubernetes' schema.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.k8s.documents import Document, of_kind

Type = type | tuple[type, ...]


@dataclass(frozen=True)
class Fields:
    """What an object of a manifest may hold, by name."""

    types: dict[str, Type]
    required: frozenset[str] = frozenset()

    def problems(self, where: str, found: Document) -> Iterator[str]:
        for name, value in found.items():
            if name not in self.types:
                yield f"{where}: KubeRay knows no field {name}"
            elif not _is(value, self.types[name]):
                yield f"{where}: {name} is {value!r}, which is of another type"
        for name in sorted(self.required - found.keys()):
            yield f"{where}: {name} is missing"


def _is(value: Any, wanted: Type) -> bool:
    # To Python a bool is an int, to Kubernetes it is not.
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


JOB = Fields(
    {
        **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit"), int),
        **dict.fromkeys(("preRunningDeadlineSeconds", "ttlSecondsAfterFinished"), int),
        **dict.fromkeys(("entrypointNumCpus", "entrypointNumGpus"), (int, float)),
        **dict.fromkeys(("entrypoint", "entrypointResources", "jobId", "managedBy"), str),
        **dict.fromkeys(("runtimeEnvYAML", "submissionMode"), str),
        **dict.fromkeys(("clusterSelector", "deletionStrategy", "metadata"), dict),
        **dict.fromkeys(("rayClusterSpec", "submitterConfig", "submitterPodTemplate"), dict),
        **dict.fromkeys(("shutdownAfterJobFinishes", "suspend"), bool),
    }
)
CLUSTER = Fields(
    {
        **dict.fromkeys(("authOptions", "autoscalerOptions", "gcsFaultToleranceOptions"), dict),
        **dict.fromkeys(("headGroupSpec", "headServiceAnnotations"), dict),
        **dict.fromkeys(("historyServerOptions", "networkPolicy", "tlsOptions"), dict),
        **dict.fromkeys(("managedBy", "rayVersion"), str),
        **dict.fromkeys(("enableInTreeAutoscaling", "suspend"), bool),
        "upgradeStrategy": dict,
        "workerGroupSpecs": list,
    },
    required=frozenset({"headGroupSpec"}),
)
AUTH = Fields({"enableK8sTokenAuth": bool, "mode": str, "secretName": str})
GROUP: dict[str, Type] = dict.fromkeys(("labels", "rayStartParams", "resources", "template"), dict)
HEAD = Fields(
    GROUP
    | {"enableIngress": bool, "headService": dict, "ingressOptions": dict, "serviceType": str},
    required=frozenset({"template"}),
)
WORKERS = Fields(
    GROUP
    | dict.fromkeys(("idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts"), int)
    | {"groupName": str, "priority": int, "replicas": int, "scaleStrategy": dict, "suspend": bool},
    required=frozenset({"groupName", "maxReplicas", "minReplicas", "template"}),
)


def ray_fields_are_known(documents: list[Document]) -> Iterator[str]:
    """A misspelt one is refused by the API server, or pruned without a word."""
    for job in of_kind(documents, "RayJob"):
        where = f"RayJob {job['metadata']['name']}"
        yield from JOB.problems(where, job["spec"])
        cluster = job["spec"].get("rayClusterSpec", {})
        yield from CLUSTER.problems(f"{where}, rayClusterSpec", cluster)
        yield from AUTH.problems(f"{where}, authOptions", cluster.get("authOptions", {}))
        yield from HEAD.problems(f"{where}, head", cluster.get("headGroupSpec", {}))
        for number, group in enumerate(cluster.get("workerGroupSpecs", [])):
            yield from WORKERS.problems(f"{where}, workerGroupSpecs {number}", group)
