"""A GPU that PyTorch would report, for machines without one."""

from types import SimpleNamespace

import pytest
import torch


def visible_gpu(
    monkeypatch: pytest.MonkeyPatch,
    *,
    capability: tuple[int, int] = (9, 0),
    free: float = 78.0,
    total: float = 79.2,
) -> None:
    """PyTorch reports one, the second of its machine, with so many GiB of memory."""
    major, minor = capability
    properties = SimpleNamespace(name="Tesla Made-up", major=major, minor=minor)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    memory = int(free * 2**30), int(total * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: memory)
