"""The part `graph`: what it says of engines whose losses agree, and of others."""

import pytest
import torch
from torch import Tensor

from pipelines.doctor.gpu.correctness import graph

CPU = torch.device("cpu")


class Engine:
    """Its loss is a function of the pixels; `stale` ones go on with the first they have seen."""

    def __init__(self, *, stale: bool) -> None:
        self.stale, self.seen = stale, Tensor()

    def train_step(self, batches: list[Tensor], rate: float) -> dict[str, Tensor]:
        if not self.stale or not self.seen.numel():
            self.seen = batches[0]
        return {"loss": self.seen.float().mean()}


@pytest.mark.parametrize("stale", [False, True])
def test_a_graph_that_goes_on_with_old_pixels_is_found_out(
    stale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        graph, "build_engine", lambda *_, cuda_graph: Engine(stale=cuda_graph and stale)
    )
    row = graph.compare(1, "pocket", 8, 2, CPU)
    assert row.case == "pocket 8 px, batch 2, stage 1"
    assert (row.figures["largest difference"] != 0) is stale
    assert bool(row.problem) is stale
    assert float(row.figures["graph images/s"]) > 0
