"""The process of one worker: `python -m cluster.workers.child`, started by an agent.

    prepare (imports and the like) -> "ready" -> wait for an order -> join the group -> work -> end

It imports everything before it gets an order, so that a group that lost a worker continues within
seconds. The job runs in the main thread. When the agent dies for any reason, the kernel kills it.
"""

import argparse
import ctypes
import faulthandler
import json
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_address
from typing import IO, TYPE_CHECKING

import psutil

from cluster.placement import worker_device
from cluster.workers import current
from cluster.workers.beacon import Beacon
from cluster.workers.messages import Order

if TYPE_CHECKING:
    from torch.distributed import TCPStore

PR_SET_PDEATHSIG = 1
GROUP_TIMEOUT = timedelta(seconds=600)
"""The timeout of collectives, a last resort: the watchdog acts sooner."""
# Parts of the plain RuntimeError that gloo raises when the other process is gone.
GONE = ("gloo/transport", "Connection closed by peer", "Connection reset", "Broken pipe")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--page", "--stacks", "--messages", "--parent"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    _die_with(args.parent)
    faulthandler.register(signal.SIGUSR1, file=args.stacks, all_threads=True)
    messages = os.fdopen(args.messages, "w", buffering=1)
    beacon = Beacon.on(args.page)
    try:
        prepare, _ = pickle.loads(pickle.load(sys.stdin.buffer))
        prepare()
        messages.write('{"ready": true}\n')
        beacon.enter("waiting")
        order: Order = pickle.load(sys.stdin.buffer)
        obey(order, beacon, messages)
        ended: dict[str, object] = {"how": "done"}
    except current.Stopped:
        ended = {"how": "stopped"}
    except BaseException as error:
        ended = _raised(error)
    messages.write(json.dumps({"ended": ended}) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    # The store of the group lives in rank 0, so every child stays until the agent closes the pipe,
    # which it does when all workers have reported their end.
    sys.stdin.buffer.read()
    # A normal exit of Python sometimes aborts: DeepSpeed's globals keep process groups alive.
    os._exit(0)


def obey(order: Order, beacon: Beacon, messages: IO[str]) -> None:
    """Join the process group and run the job's function; its exceptions pass through."""
    began = time.monotonic()

    def tell(name: str) -> None:
        messages.write(json.dumps({"milestone": name, "seconds": time.monotonic() - began}) + "\n")

    def give_up(error: BaseException) -> None:
        messages.write(json.dumps({"ended": _raised(error)}) + "\n")
        os._exit(1)

    current.become(current.CurrentWorker(beacon, tell, give_up))
    beacon.enter("process group")
    _set_environment(order)
    # First, because NCCL's words on a GPU that cannot be used are not for users.
    worker_device(use_gpu=order.use_gpu, local_rank=order.local_rank)
    import torch.distributed as dist

    dist.init_process_group(
        "nccl" if order.use_gpu else "gloo",
        store=_store(order),
        rank=order.rank,
        world_size=order.world_size,
        timeout=GROUP_TIMEOUT,
    )
    current.worker().milestone("process group")
    beacon.enter("start-up")
    function, argument = pickle.loads(order.job)
    function(argument)


def _store(order: Order) -> "TCPStore":
    """The group's store. Rank 0 serves it at its node's address; PyTorch by itself would listen on
    all addresses of the machine.
    """
    from torch.distributed import TCPStore

    host, port = _host_and_port(order)
    listening = socket.create_server((host, port)).detach() if order.rank == 0 else None
    return TCPStore(
        host,
        port,
        order.world_size,
        is_master=order.rank == 0,
        timeout=GROUP_TIMEOUT,
        master_listen_fd=listening,
    )


def _host_and_port(order: Order) -> tuple[str, int]:
    host, _, port = order.address.rpartition(":")
    return host, int(port)


def _set_environment(order: Order) -> None:
    """Set what PyTorch's launchers set, and choose the GPU before CUDA is initialised."""
    host, port = _host_and_port(order)
    os.environ |= {
        "RANK": str(order.rank),
        "WORLD_SIZE": str(order.world_size),
        "LOCAL_RANK": str(order.local_rank),
        "LOCAL_WORLD_SIZE": str(order.local_world_size),
        "NODE_RANK": str(order.node_rank),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }
    if ip_address(host).is_loopback:
        # A cluster of this machine alone: its workers listen where nobody else can connect.
        for interface in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(interface, "lo")
    if order.use_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = order.devices
    # Gloo would take the address of the machine's name, which is 127.0.1.1 in Debian's /etc/hosts.
    if (own := _interface_of(order.host)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", own)


def _interface_of(host: str) -> str | None:
    """The network interface with this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == host for each in addresses):
            return name
    return None


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _raised(error: BaseException) -> dict[str, object]:
    """The fields of `Ended` for an exception."""
    final, words = isinstance(error, current.Final), str(error).strip()
    return {
        "how": "raised",
        # What is final was written for users; the type of anything else is half of what it says.
        "error": words if final else f"{type(error).__name__}: {words}",
        "trace": "".join(traceback.format_exception(error)),
        "cause": error.cause if isinstance(error, current.Agreed | current.Unusable) else "error",
        "of_group": _of_group(error),
        "final": final,
    }


def _of_group(error: BaseException) -> bool:
    """Whether another worker caused the error: it died, or is named by all."""
    if isinstance(error, current.Agreed):
        return not error.to_blame
    dist = sys.modules.get("torch.distributed")
    kinds = () if dist is None else (dist.DistError,)
    return any(
        isinstance(each, kinds)
        or (isinstance(each, RuntimeError) and any(words in str(each) for words in GONE))
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    main()
