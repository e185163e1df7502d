"""Recognises the dialect of a file's names, and the prefix before them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from convnextv2.weights.dialects import (
    DIALECTS,
    OURS,
    is_grn,
    is_pointwise,
    pattern,
    rename,
    renamed,
    some,
)
from convnextv2.weights.sparse_files import densified, is_sparse
from convnextv2.weights.state import ENCODER, State, WeightsError

# Two more forms of the official names: FCMAE's, with `encoder.` before them, and MinkowskiEngine's.
FCMAE, SPARSE = "fcmae", "official-sparse"


# What torch.compile, FSDP and activation checkpointing insert into names, at any depth.
INSERTED = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class Translated(NamedTuple):
    """A state under our names, and how it was named before.

    Attributes:
        state: The weights.
        dialect: A name among `DIALECTS`, `FCMAE` or `SPARSE`.
        prefix: What stood before every name, such as "module." or "student.backbone."
        left_out: Names that are not under the prefix: a loss, a counter, another head.
    """

    state: State
    dialect: str
    prefix: str = ""
    left_out: tuple[str, ...] = ()


def to_ours(state: Mapping[str, Tensor]) -> Translated:
    """Recognise the dialect of a file's names and translate them, dtypes kept.

    FCMAE's decoder and mask token stay, and so does `encoder.` before the encoder's names.

    Raises:
        WeightsError: When it is none of the dialects, holds several models, or a name under the
            model's prefix has no place in its dialect.
    """
    plain = {INSERTED.sub("", name): value for name, value in state.items()}
    sparse = is_sparse(plain)
    dense = densified(plain) if sparse else plain
    dialect, prefix = _dialect_and_prefix(dense)
    left_out = tuple(name for name in dense if not name.startswith(prefix))
    own = {n.removeprefix(prefix): v for n, v in dense.items() if n.startswith(prefix)}
    named = renamed(own, DIALECTS[dialect], OURS)
    ours = {name: _our_shape(name, value) for name, value in named.items()}
    if any(name.startswith(ENCODER) for name in ours):
        dialect = FCMAE
    return Translated(ours, SPARSE if sparse else dialect, prefix, left_out)


def _dialect_and_prefix(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """The dialect and the prefix before its names, found by the name of the stem's weight.

    The name may be read in several ways, because `backbone.` and `encoder.` belong to some dialects
    and are prefixes of others. The reading that fits most of the names is taken.
    """
    found = []
    for stem in state:
        readings = [
            (_fitting(state, dialect, prefix), -len(prefix), dialect, prefix)
            for prefix in _beginnings(stem)
            for dialect, templates in DIALECTS.items()
            if pattern(templates[0]).fullmatch(stem.removeprefix(prefix))
            and stem.endswith(".weight")
        ]
        if readings:
            found.append(max(readings)[2:])
    if not found:
        raise WeightsError(
            f"no ConvNeXt V2 in a dialect that is known ({', '.join([*DIALECTS, FCMAE, SPARSE])}); "
            f"the names are {some(list(state))}"
        )
    if len(found) > 1:
        under = " and ".join(prefix.removesuffix(".") or "no prefix" for _, prefix in found)
        raise WeightsError(f"{len(found)} models, under {under}; choose one (--part, part=)")
    return found[0]


def _beginnings(name: str) -> list[str]:
    """All possible prefixes of a name: "", "module.", "module.encoder." and so on."""
    return [name[:end] for end in [0, *(dot.end() for dot in re.finditer(r"\.", name))]]


def _fitting(state: Mapping[str, Tensor], dialect: str, prefix: str) -> int:
    """How many names the dialect has, with that prefix."""
    own = (name.removeprefix(prefix) for name in state if name.startswith(prefix))
    return sum(rename(name, DIALECTS[dialect], OURS) is not None for name in own)


def _our_shape(name: str, value: Tensor) -> Tensor:
    if is_grn(name):
        return value.reshape(1, 1, 1, -1)
    if is_pointwise(name):
        return value.flatten(1)
    # MinkowskiEngine's biases are (1, C).
    return value.flatten() if name.endswith(".bias") else value
