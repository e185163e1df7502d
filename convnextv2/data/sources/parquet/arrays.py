"""Images as numbers in a column: lists of lists of numbers, or tensors of a fixed shape.

The first are also what Array2D and Array3D of the library `datasets` are kept as; the second are
Arrow's `arrow.fixed_shape_tensor`. A row is handed on as the .npy file of its array, so that there
is one rule for what such an array may be (`convnextv2.data.pixels.npy`).
"""

from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def dimensions(kind: pa.DataType) -> int:
    """How many dimensions the arrays in a column have, 0 where it holds none of numbers.

    A list without lists in it has one: its shape is told nowhere, and it is no image.
    """
    if isinstance(kind, pa.FixedShapeTensorType):
        return len(kind.shape)
    depth, values = 0, _stored_as(kind)
    while _is_list(values):
        depth, values = depth + 1, values.value_type
    return depth if _is_number(values) else 0


def has_whole_numbers(kind: pa.DataType) -> bool:
    """Whether arrays are of integers, as images are, and not of coordinates or features."""
    values = _stored_as(kind)
    while _is_list(values):
        values = values.value_type
    return bool(pa.types.is_integer(values))


def npy_of(row: pa.Scalar) -> bytes:
    """The array of a row as a .npy file; nothing of a null.

    Where lists that belong together differ in length, it is one long row, which is no image.
    """
    if not row.is_valid:
        return b""
    file = BytesIO()
    np.save(file, _array_of(row), allow_pickle=False)
    return file.getvalue()


def _array_of(row: pa.Scalar) -> NDArray[Any]:
    kind = row.type
    if isinstance(kind, pa.FixedShapeTensorType):
        # pyarrow's own to_numpy mixes up the pixels of a tensor whose axes are turned round.
        stored = _numbers(row.value.values).reshape(kind.shape)
        return stored if kind.permutation is None else stored.transpose(kind.permutation)
    values = (row.value if isinstance(row, pa.ExtensionScalar) else row).values
    shape, even = [len(values)], True
    while _is_list(values.type):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        even = even and len(lengths) == 1 and lengths[0] is not None
        shape.append(lengths[0] if even else 0)
        values = values.flatten()
    return _numbers(values).reshape(shape) if even else _numbers(values)


def _numbers(values: pa.Array) -> NDArray[Any]:
    """Values as an array; as fractions, which are no pixels, if some are null."""
    known = values.cast(pa.float64()) if values.null_count else values
    numbers: NDArray[Any] = known.to_numpy(zero_copy_only=False)
    return numbers


def _stored_as(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list)
    )


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return any(test(kind) for test in (types.is_integer, types.is_floating, types.is_boolean))
