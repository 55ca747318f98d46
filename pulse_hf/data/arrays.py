"""Arrow columns from and to numpy and lists of texts, by their buffers.

``pa.array`` and ``to_numpy`` say the same in fewer words, but import pandas, which takes as long as preparing some ten
thousand rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_MOST_BYTES = 2**31 - 1  # of one array of texts with 32-bit offsets


def numbers(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """The values of a column of numbers without nulls; not copied if it is of one piece.

    >>> import pyarrow as pa
    >>> numbers(pa.chunked_array([[1, 2], [3]])).tolist()
    [1, 2, 3]
    """
    import numpy as np
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return np.from_dlpack(column)


def column_of(values: NDArray[Any]) -> pa.Array:
    """Numbers or truth values, one-dimensional, as an Arrow column.

    >>> import numpy as np
    >>> column_of(np.array([True, False, True])).to_pylist(), column_of(np.arange(3)).to_pylist()
    ([True, False, True], [0, 1, 2])
    """
    import numpy as np
    import pyarrow as pa

    kind = pa.from_numpy_dtype(values.dtype)
    stored = np.packbits(values, bitorder="little") if kind == pa.bool_() else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(stored)])


def texts(values: Series[str]) -> pa.StringArray:
    """Texts without nulls as an Arrow column.

    Raises:
        ValueError: They have more than 2 GiB.

    Example:
        >>> texts(["a", "", "\u00e9!"]).to_pylist()
        ['a', '', 'é!']
    """
    import numpy as np
    import pyarrow as pa

    joined = "".join(values)
    data = joined.encode()
    # Of ASCII one letter is one byte.
    sizes = map(len, values) if joined.isascii() else (len(value.encode()) for value in values)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"texts of {len(data):,} bytes together, expected at most {_MOST_BYTES:,}.")
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum(np.fromiter(sizes, np.int64, len(values)), out=offsets[1:])
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(data))


def lists(offsets: NDArray[Any], values: pa.Array) -> pa.ListArray:
    """A column of lists: the values from each offset to the next.

    >>> import numpy as np
    >>> lists(np.array([0, 2, 3]), column_of(np.arange(3))).to_pylist()
    [[0, 1], [2]]
    """
    import numpy as np
    import pyarrow as pa

    return pa.ListArray.from_arrays(column_of(offsets.astype(np.int32)), values)
