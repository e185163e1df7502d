"""What a run showed, in words."""

from collections.abc import Mapping

from pipelines.report.tables import (
    MODELS,
    NEIGHBOURS,
    PRETRAINED,
    PROBE,
    SCRATCH,
    comparisons,
    signed,
)
from pipelines.results import Result


def verdict(results: Mapping[str, Result], labelled_images: int, *, pretraining: str) -> str:
    """What the run showed, in one sentence, whichever way it went.

    Args:
        results: Of the models there are (`pipelines.report.tables.MODELS`), and of others.
        labelled_images: Images the classifiers were trained on.
        pretraining: What came before.
    """
    labels = f"{labelled_images:,} labels"
    pretrained, scratch = results.get(PRETRAINED), results.get(SCRATCH)
    if pretrained is None and scratch is not None:
        return f"Trained from scratch on {labels}, the model reaches {reached_text(scratch)}."
    if pretrained is None:
        return _of_others(results, labels, pretraining)
    compared = comparisons(results)[0]
    gain, known, metric = compared.gain, compared.margin, pretrained.main
    if gain is None or scratch is None:
        return (
            f"Fine-tuned on {labels} after {pretraining}, the model reaches "
            f"{reached_text(pretrained)}; there is no baseline from scratch to compare with."
        )
    before, after = metric.text(scratch.main.value), metric.text(metric.value)
    change = (
        f"{'lifts' if gain > 0 else 'lowers'} {metric.title} at {labels} from {before} to {after} "
        f"({f'{signed(metric, gain)} {metric.change_unit}'.rstrip()})"
    )
    if metric.change_text(abs(gain)) == metric.change_text(0.0):
        change = f"leaves {metric.title} at {labels} at {after}, as without it"
    elif known is not None and abs(gain) < known:
        change += f", a difference that {metric.images:,} test images cannot tell from chance"
    return f"{_capitalized(pretraining)} {change}."


def _of_others(results: Mapping[str, Result], labels: str, pretraining: str) -> str:
    """The sentence where no classifier was fine-tuned."""
    reached = []
    if PROBE in results:
        probe = reached_text(results[PROBE])
        reached.append(f"a linear classifier with {labels} reaches {probe}")
    if NEIGHBOURS in results:
        reached.append(f"nearest neighbours reach {reached_text(results[NEIGHBOURS])}")
    if reached:
        return f"On the frozen features of {pretraining}, {' and '.join(reached)}."
    others = [
        f"{name} reaches {reached_text(result)}"
        for name, result in results.items()
        if name not in MODELS
    ]
    if others:
        return f"{_capitalized(' and '.join(others))}."
    if not pretraining:
        return "Nothing was evaluated yet."
    return f"{_capitalized(pretraining)} is done; nothing was evaluated."


def reached_text(result: Result) -> str:
    """The main metric with its name."""
    return f"{result.main.text(result.main.value)} {result.main.title}"


def _capitalized(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
