"""A training step asks the device for nothing and copies to it without a wait.

PyTorch's device "meta" has shapes and no values: whatever would have to be read from a GPU (how
many sites there are, whether masks are alike) is an error there.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.masking import send
from convnextv2.fcmae.sparse import Backend
from tests.convnextv2.fcmae.small_fcmae import masks, small_fcmae

META = torch.device("meta")
BACKENDS: tuple[Backend, ...] = ("gather", "masked-dense", "auto")


class CopiesToMeta(TorchDispatchMode):
    """Notes of every copy from the CPU to the device whether the host may go on meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.free: list[bool] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        target = named.get("device")
        if func is torch.ops.aten._to_copy.default and target == META and args[0].device != META:
            self.free.append(bool(named.get("non_blocking")))
        return func(*args, **named)


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest) -> FCMAE:
    return small_fcmae(backend=request.param).to(META)


def step(model: FCMAE, mask: Tensor) -> None:
    images = torch.empty(len(mask), 3, *model.image_size, device=META, dtype=torch.float64)
    model(images, mask=mask, prediction="masked").loss.backward()


def test_a_step_neither_asks_the_device_nor_waits_for_copies(model: FCMAE) -> None:
    mask = masks(model, {0, 3}, {1, 5})
    with CopiesToMeta() as copies:
        step(model, mask)
    assert copies.free, "the masks and their indices are copied"
    assert all(copies.free)
    assert len(copies.free) <= 4


def test_a_mask_on_the_device_does_ask_it(model: FCMAE) -> None:
    """So the test above would notice: this is what a step must not do."""
    with pytest.raises((NotImplementedError, RuntimeError), match=r"meta|Meta"):
        step(model, masks(model, {0, 3}, {1, 5}).to(META))


def test_copies_to_a_gpu_are_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noted(torch.Tensor):
        pinned = False

        def pin_memory(self, device: Any = None) -> "Noted":
            found = self.clone().as_subclass(Noted)
            found.pinned = True
            return found

        def to(self, device: torch.device, *, non_blocking: bool) -> tuple[Any, ...]:  # type: ignore[override]
            return device.type, self.pinned, non_blocking

    indices = torch.arange(3).as_subclass(Noted)
    assert send(indices, torch.device("cuda", 1)) == ("cuda", True, True)
    assert send(indices, torch.device("cpu")) == ("cpu", False, True)
