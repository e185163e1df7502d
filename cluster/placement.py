"""Where workers are placed: what they need, and the environment they get."""

import ctypes
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.gpu import UnusableGPU, open_gpu
from cluster.resilience import fault_injection
from cluster.workers.current import Unusable

if TYPE_CHECKING:
    import torch

CONNECT_SECONDS = 10.0
CLIENT = "ray://"
# On CPUs freed tensors stay with the process instead of going to the kernel and coming back page by
# page, zeroed: a tenth of a step (docs/performance.md). One arena, because the training function is
# not in the main thread, and the arenas of other threads take no tensor of more than 64 MB.
KEEP_PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824"
    ":glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1"
}
# Ray shows a worker that asked for no GPU all that the machine has.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
# Memory freed by batches of one size can be used for those of another.
FEW_FRAGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
# FFCV and DeepSpeed ask whether there is a GPU when they are imported. By default PyTorch's answer
# initialises CUDA, for the GPUs visible then; but a worker is told which are its own later.
NO_EARLY_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
# PyTorch's allocator reads either, under its name of today or under the older one.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

# What the driver's environment plans for the workers: faults, and a record of their samples.
LABORATORY = (fault_injection.VARIABLE, "CONVNEXTV2_SAMPLE_LOG")


def give_back_freed_memory() -> None:
    """Have glibc return what is free, in spite of `KEEP_PAGES`: building an engine leaves several
    times the model in pieces that no large tensor fits into.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class ClusterError(RuntimeError):
    """The cluster cannot be used, or a worker group failed for good; the message says why."""


class NoGPU(ClusterError, Unusable):
    """A worker has no GPU that can be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a worker group needs.

    A group has `num_workers`, or as few as `min_workers` if there is no room for more. `address`
    names a running cluster ("auto", "host:port"); None starts one on this machine, unless the
    environment has RAY_ADDRESS. `max_failures` bounds how often a fault of one cause is mended
    between two checkpoints; `warm_spare` keeps a second process of each worker ready.
    """

    num_workers: int
    min_workers: int | None = None
    cpus_per_worker: int = 1
    use_gpu: bool = False
    max_failures: int = 3
    address: str | None = None
    dashboard_port: int | None = None
    warm_spare: bool = False
    start_timeout_seconds: float = 300.0

    @property
    def worker_resources(self) -> dict[str, float]:
        gpu = {"GPU": 1.0} if self.use_gpu else {}
        return {"CPU": float(self.cpus_per_worker), **gpu}

    @property
    def sizes(self) -> range:
        """Numbers of workers that a group may have."""
        return range(self.min_workers or self.num_workers, self.num_workers + 1)

    @property
    def resources(self) -> dict[str, float]:
        """Of the largest group."""
        return {name: value * self.num_workers for name, value in self.worker_resources.items()}

    @property
    def least_resources(self) -> dict[str, float]:
        """Of the smallest group."""
        return {name: value * self.sizes[0] for name, value in self.worker_resources.items()}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the workers."""
        # Who set the allocator where the run was started wants it so.
        chosen = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
        device = NO_EARLY_CUDA | (chosen or FEW_FRAGMENTS) if self.use_gpu else NO_GPU | KEEP_PAGES
        planned = {name: os.environ[name] for name in LABORATORY if name in os.environ}
        return {
            "OMP_NUM_THREADS": str(self.cpus_per_worker),
            **device,
            **planned,
        }

    @property
    def own_cluster(self) -> dict[str, Any]:
        """Arguments of `ray.init` for a cluster on this machine."""
        port = self.dashboard_port
        if port is not None and port_taken(port):
            raise ClusterError(
                f"port {port} for Ray's dashboard is in use; set cluster.dashboard_port to a free "
                "one, or to null for no dashboard"
            )
        # Logical CPUs: a machine with fewer cores than workers runs them too, only slower.
        wanted = int(self.resources["CPU"])
        return {
            "num_cpus": max(wanted, os.cpu_count() or 1),
            "include_dashboard": port is not None,
            "dashboard_port": port,
            # Images travel through the page cache, not through Ray's object store.
            "object_store_memory": 128 << 20,
        }


def fewest_nodes(
    free: Mapping[str, Mapping[str, float]], need: Mapping[str, float], count: int
) -> list[str]:
    """The nodes for up to `count` workers, so that they are on as few nodes as possible.

    The largest nodes are filled first. The last node is the smallest that has room for the rest,
    which leaves large nodes whole, and fills up those that are partly in use.

    Args:
        free: Free resources by node.
        need: What one worker needs.
        count: How many workers are to be placed.

    Returns:
        A node for every worker that there is room for now.
    """
    room = {
        node: int(min(resources.get(name, 0.0) // amount for name, amount in need.items()))
        for node, resources in free.items()
    }
    chosen: list[str] = []
    while (left := count - len(chosen)) and any(room.values()):
        fits = [node for node, places in room.items() if places >= left]
        node = min(fits, key=room.__getitem__) if fits else max(room, key=room.__getitem__)
        chosen += [node] * min(left, room.pop(node))
    return chosen


def worker_device(*, use_gpu: bool, local_rank: int | None = None) -> "torch.device":
    """Where this worker computes: on its GPU, or on the CPU whatever GPUs the machine has.

    Args:
        use_gpu: Whether it is to have a GPU.
        local_rank: The number of the GPU that becomes the current one; by default, what is.

    Raises:
        NoGPU: When it should have a GPU, and there is none that can be used.
    """
    import torch  # By workers only: the driver places them without it.

    if not use_gpu:
        return torch.device("cpu")
    try:
        return open_gpu(local_rank)
    except UnusableGPU as error:
        raise NoGPU(
            f"cluster.use_gpu is true, but in this worker {error}; cluster.use_gpu=false trains on "
            "CPUs"
        ) from error


def check_answers(address: str, seconds: float = CONNECT_SECONDS) -> None:
    """Fail at once where nothing listens, and after some seconds where nobody answers; Ray itself
    would try for minutes. Ray's client is refused, for it cannot tell the state of nodes.
    """
    if address.startswith(CLIENT):
        raise ClusterError(
            "Ray's client is not supported: give the command on a machine of the cluster, with "
            "cluster.address=auto, or by `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), seconds).close()
    except OSError as error:
        raise ClusterError(f"nothing answers there ({error})") from error


def port_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
