"""A state: tensors by name, under our own names.

Our names are those of the published dense checkpoints; FCMAE puts `encoder.` before them and adds
the parts of its decoder.
"""

from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]

ENCODER = "encoder."
FCMAE_ONLY = ("mask_token", "proj.", "decoder.", "pred.")
HEAD_ONLY = ("norm.", "head.")


class WeightsError(ValueError):
    """A weight file cannot be read, or is of another model."""


def encoder_of(state: Mapping[str, Tensor]) -> State:
    """The encoder alone, under the names of the published dense checkpoints."""
    if any(name.startswith(ENCODER) for name in state):
        return {
            name.removeprefix(ENCODER): value
            for name, value in state.items()
            if name.startswith(ENCODER)
        }
    return {name: value for name, value in state.items() if not name.startswith(FCMAE_ONLY)}
