"""Opens the GPU of this process, or says in one sentence why it cannot be used."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LEAST_CAPABILITY = (8, 0)
GIB = 1 << 30
OWN_CONTEXT = 1.5
"""GiB that opening the GPU costs a process, with some room to spare."""


ADVICE = {
    "too old": "update the driver",
    "busy or unavailable": "another process has it for itself (nvidia-smi lists them)",
}
"""What to add to a message of PyTorch that has these words."""


class UnusableGPU(RuntimeError):
    """There is no GPU, it or its driver is too old, or another process keeps it for itself; the
    message says which.
    """


def open_gpu(number: int | None = None) -> "torch.device":
    """Open a GPU by its number among those this process sees; by default, the current one.

    Raises:
        UnusableGPU: When it cannot be used; in one sentence.
    """
    import torch  # Imported here because the driver runs without PyTorch.

    if torch.version.cuda is None:
        raise UnusableGPU(
            f"no GPU can be used: this PyTorch ({torch.__version__}) was built without CUDA; "
            "install a CUDA build"
        )
    try:
        torch.cuda.init()
        if number is not None:
            torch.cuda.set_device(number)
    except (RuntimeError, AssertionError) as error:
        # PyTorch's message tells a missing driver from one that is too old, and goes on for long.
        words = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        advice = "".join(f"; {what}" for known, what in ADVICE.items() if known in words)
        raise UnusableGPU(f"no GPU can be used: {words}{advice}") from error
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    refuse_old(properties.name, (properties.major, properties.minor))
    return device


def refuse_old(name: str, capability: tuple[int, int]) -> None:
    """Raise UnusableGPU for a GPU without bf16 matrix units."""
    if capability < LEAST_CAPABILITY:
        raise UnusableGPU(
            f"{name} has compute capability {capability[0]}.{capability[1]}; bf16 training and "
            "the kernels need 8.0 (A100) or newer"
        )


def taken_by_others(free: float, total: float) -> str:
    """A phrase on the memory (GiB) that other processes use; "" when there is next to none."""
    taken = total - free - OWN_CONTEXT
    if taken < 0.02 * total:
        return ""
    return f"other processes use about {taken:.0f} of its {total:.0f} GiB (nvidia-smi lists them)"
