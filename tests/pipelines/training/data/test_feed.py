"""Which steps are trained, and with which samples, when some are left out."""

from collections.abc import Iterator
from contextlib import closing
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.resilience.goodput import Stopwatch
from convnextv2.data.order.global_order import GlobalOrder, Indices
from convnextv2.tasks.batch import Batch
from pipelines.training.anomalies.spikes import Window, Windows
from pipelines.training.data.feed import Feed

TOTAL = 14
ORDER = GlobalOrder(17, 4, seed=5)  # Four steps an epoch.


class Loader:
    """A loader that hands samples on as two micro batches."""

    def batches(self, samples: Iterator[Indices], epoch: int) -> Iterator[Batch]:
        for part in samples:
            for indices in np.split(part.astype(np.int64), 2):
                numbers = torch.from_numpy(indices)
                yield Batch(numbers, numbers, numbers, epoch)


def feed_with(windows: Windows) -> Feed:
    engine = MagicMock(device=torch.device("cpu"))
    return Feed(ORDER, Loader(), engine, Stopwatch(), 3, 2, TOTAL, windows)  # type: ignore[arg-type]


def windows_of(*pairs: tuple[int, int]) -> Windows:
    return Windows(
        tuple(Window(first=first, end=end, step=1, loss=2.0, median=1.0) for first, end in pairs)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, TOTAL - 1), st.integers(1, TOTAL)), max_size=3),
    st.integers(0, TOTAL),
)
def test_every_other_step_has_its_own_samples(drawn: list[tuple[int, int]], resumed: int) -> None:
    pairs = [(first, min(first + length, TOTAL)) for first, length in drawn]
    left_out = {step for first, end in pairs for step in range(first, end)}
    feed = feed_with(windows_of(*pairs))
    trained, reached = [], resumed
    with closing(feed.global_batches(resumed)) as steps:  # type: ignore[type-var]
        for step, batches in steps:
            epoch, number = divmod(step, 4)
            there = list(batches)
            assert [batch.epoch for batch in there] == [epoch] * 2
            samples = torch.cat([batch.indices for batch in there]).tolist()
            assert samples == ORDER.batch(epoch, number).tolist()
            trained.append(step)
            reached = feed.reached(step + 1)
            assert reached == (TOTAL if left_out >= set(range(step + 1, TOTAL)) else step + 1)
    assert trained == [step for step in range(resumed, TOTAL) if step not in left_out]
    reached = feed.reached(reached)
    assert reached == TOTAL
    counted = sum(call.args[0] for call in feed.engine.pass_over.call_args_list)  # type: ignore[attr-defined]
    assert counted == feed.passed_over == TOTAL - resumed - len(trained)


@pytest.mark.parametrize("window", [(4, 8), (2, 9), (0, 4)])
def test_a_whole_epoch_may_be_left_out(window: tuple[int, int]) -> None:
    feed = feed_with(windows_of(window))
    steps = [step for step, _ in feed.global_batches(0)]
    assert steps == [step for step in range(TOTAL) if step not in range(*window)]
