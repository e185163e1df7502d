"""Images stored as numbers in a column: nested lists, or tensors of a fixed shape.

Nested lists are also how the library `datasets` stores Array2D and Array3D; the tensors are Arrow's
`arrow.fixed_shape_tensor`. Each row is passed on as the .npy file of its array, so that one place
(`convnextv2.data.pixels.npy`) decides which arrays are images.
"""

from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def dimensions(kind: pa.DataType) -> int:
    """Number of dimensions of the arrays in a column; 0 if it holds no arrays of numbers.

    A flat list has one dimension: nothing tells the shape, so it is no image.
    """
    if isinstance(kind, pa.FixedShapeTensorType):
        return len(kind.shape)
    depth, values = 0, _stored_as(kind)
    while _is_list(values):
        depth, values = depth + 1, values.value_type
    return depth if _is_number(values) else 0


def has_whole_numbers(kind: pa.DataType) -> bool:
    """Whether arrays hold integers, as images do, and not coordinates or features."""
    values = _stored_as(kind)
    while _is_list(values):
        values = values.value_type
    return bool(pa.types.is_integer(values))


def npy_of(row: pa.Scalar) -> bytes:
    """The array of a row as a .npy file; empty bytes for a null.

    If lists at the same depth differ in length, the array is flat, which is rejected as an image.
    """
    if not row.is_valid:
        return b""
    file = BytesIO()
    np.save(file, _array_of(row), allow_pickle=False)
    return file.getvalue()


def _array_of(row: pa.Scalar) -> NDArray[Any]:
    kind = row.type
    if isinstance(kind, pa.FixedShapeTensorType):
        # pyarrow's own to_numpy mixes up the pixels of a tensor with permuted axes.
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
    """Values as an array. If some are null, it holds floats, which are rejected as pixels."""
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
