"""What a run showed, in words."""

from collections.abc import Mapping
from typing import Any

from pipelines.report.tables import PRETRAINED, PROBE, SCRATCH, Evaluation, margin


def verdict(
    evaluations: Mapping[str, Evaluation],
    neighbours: Mapping[str, Any] | None,
    labelled_images: int,
    *,
    pretraining: str,
) -> str:
    """What the run showed, in one sentence, whichever way it went.

    Args:
        evaluations: Of the models there are (`pipelines.report.tables.MODELS`).
        neighbours: What knn.json holds, if there is one.
        labelled_images: Images the classifiers were trained on.
        pretraining: What came before.
    """
    labels = f"{labelled_images:,} labels"
    pretrained, scratch = evaluations.get(PRETRAINED), evaluations.get(SCRATCH)
    if pretrained is None and scratch is not None:
        return f"Trained from scratch on {labels}, the model reaches {reached_text(scratch)}."
    if pretrained is None:
        return _of_frozen(evaluations.get(PROBE), neighbours, labels, pretraining)
    if scratch is None:
        return (
            f"Fine-tuned on {labels} after {pretraining}, the model reaches "
            f"{reached_text(pretrained)}; there is no control from scratch to compare with."
        )
    gain, known = pretrained.score - scratch.score, margin(pretrained, scratch)
    metric = pretrained.metric
    change = (
        f"{'lifts' if gain > 0 else 'lowers'} {metric} at {labels} from {scratch.score:.1%} to "
        f"{pretrained.score:.1%} ({points_text(gain)} points)"
    )
    if round(100 * gain, 1) == 0:
        change = f"leaves {metric} at {labels} at {pretrained.score:.1%}, as without it"
    elif known is not None and abs(gain) < known:
        change += f", a difference that {pretrained.images:,} test images cannot tell from chance"
    return f"{pretraining[0].upper()}{pretraining[1:]} {change}."


def _of_frozen(
    probe: Evaluation | None, neighbours: Mapping[str, Any] | None, labels: str, pretraining: str
) -> str:
    """The sentence where nothing was fine-tuned."""
    reached = []
    if probe is not None:
        reached.append(f"a linear classifier with {labels} reaches {reached_text(probe)}")
    if neighbours is not None:
        reached.append(f"nearest neighbours reach {neighbours['top1']:.1%} top-1")
    if not reached and not pretraining:
        return "Nothing was evaluated yet."
    if not reached:
        return f"{pretraining[0].upper()}{pretraining[1:]} is done; nothing was evaluated."
    return f"On the frozen features of {pretraining}, {' and '.join(reached)}."


def reached_text(evaluation: Evaluation) -> str:
    """The score with its name."""
    return f"{evaluation.score:.1%} {evaluation.metric}"


def points_text(share: float | None) -> str:
    """A difference of shares in signed percentage points."""
    return "–" if share is None else f"{100 * share:+.1f}".replace("-", "−")
