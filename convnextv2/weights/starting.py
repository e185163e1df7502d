"""Which of the given weights a training starts from, and a description of that for the log."""

from collections.abc import Sequence
from typing import NamedTuple

from convnextv2.data.labels.classes import match_classes
from convnextv2.weights.inspection import Inspection
from convnextv2.weights.state import ENCODER, FCMAE_ONLY, HEAD_ONLY, State, encoder_of


class Start(NamedTuple):
    """What is loaded before training, and a description of it and of what is initialised anew."""

    state: State
    description: str


def start_of_classifier(
    found: Inspection, classes: Sequence[str], *, new_head: bool = False
) -> Start:
    """Take the encoder, the final norm if present, and the head if its classes are `classes`.

    Classes are compared by name; the rows of the head are put into the order of `classes`. With
    `new_head` the head is never taken.
    """
    state = encoder_of(found.state)
    kept = {name: value for name, value in state.items() if not name.startswith(HEAD_ONLY)}
    norm = {name: value for name, value in state.items() if name.startswith("norm.")}
    told = "encoder" + (" and final norm" if norm else "")
    if why := _why_new_head(found, classes, new_head):
        return Start({**kept, **norm}, f"{told}; the head is new ({why})")
    numbers = match_classes(classes, found.metadata.classes, of="the images", among="the weights")
    rows = numbers[:-1].tolist()
    head = {name: value[rows] for name, value in state.items() if name.startswith("head.")}
    return Start(
        {**kept, **norm, **head}, f"{told}, and head, whose {len(rows):,} classes are the same"
    )


def start_of_autoencoder(found: Inspection, decoder: tuple[str, int, int]) -> Start:
    """Take the encoder, and the decoder with mask token if it has this kind, width and depth."""
    geometry = found.geometry
    encoder = {
        f"{ENCODER}{name}": value
        for name, value in encoder_of(found.state).items()
        if not name.startswith(HEAD_ONLY)
    }
    theirs = (geometry.decoder, geometry.decoder_dim, geometry.decoder_depth)
    if theirs == decoder:
        rest = {name: v for name, v in found.state.items() if name.startswith(FCMAE_ONLY)}
        return Start({**encoder, **rest}, "encoder, decoder and mask token")
    why = (
        f"the one there is {theirs[0]}, {theirs[1]} channels, depth {theirs[2]}"
        if geometry.decoder
        else "there is none"
    )
    return Start(encoder, f"encoder; decoder and mask token are new ({why})")


def _why_new_head(found: Inspection, classes: Sequence[str], new_head: bool) -> str:
    theirs = found.metadata.classes
    if not found.geometry.num_classes:
        return "there is none"
    if new_head:
        return "a probe trains its own"
    if not theirs:
        return f"its {found.geometry.num_classes:,} classes have no names in the file"
    if set(theirs) != set(classes) or len(set(theirs)) < len(theirs):
        return f"its {len(theirs):,} classes are not the {len(classes):,} of the images"
    return ""
