"""Knows how arrays lie in a safetensors file, and maps them into memory instead of copying them.

The format is a length, a JSON header and the bytes of the arrays, end to end. It has no checksum, which the store
adds, and its own numpy reader copies; so the header is read here, with every offset checked against shape, type and
file size before an array is made. Files are written by safetensors itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import KnowledgeBaseCorruptError


_TYPES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "|u1", "I8": "|i1", "U16": "<u2"}
_DESCRIPTION = "hf_ravlm"
_MAX_HEADER_BYTES = 1_000_000
# Mapping saves nothing for small arrays.
_MIN_MAPPED_BYTES = 1_000_000


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any] | None = None) -> None:
    """Writes arrays into a safetensors file; equal arrays give equal bytes.

    Args:
        path: The file.
        arrays: Arrays by name.
        description: JSON values to keep beside them. They stand in one key, for safetensors writes several in random
            order.
    """
    from safetensors.numpy import save_file

    metadata = None if description is None else {_DESCRIPTION: json.dumps(description, sort_keys=True)}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata)


def open_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Maps the arrays of a safetensors file into memory, read-only, without reading them.

    Args:
        path: A file that never changes, such as an object of the store: a mapped file that is cut short kills the
            process.

    Returns:
        The arrays by name, and the description given to `write_arrays` (empty if there was none).

    Raises:
        FileNotFoundError: If there is no file.
        KnowledgeBaseCorruptError: If it is no such file, or its header does not fit its size.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from hf_ravlm.saving.arrays import open_arrays, write_arrays
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "numbers.safetensors"
    ...     write_arrays(path, {"rows": np.array([3, 5])}, {"made": "by hand"})
    ...     arrays, description = open_arrays(path)
    ...     print(arrays["rows"].tolist(), description)
    [3, 5] {'made': 'by hand'}

    ```
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length:,} bytes")
            header = json.loads(file.read(length))
        start, size = 8 + length, path.stat().st_size
        metadata = header.pop("__metadata__", None) or {}
        arrays = {str(name): _map_array(path, start, size, entry) for name, entry in header.items()}
        description = json.loads(metadata.get(_DESCRIPTION, "{}"))
        if not isinstance(description, dict):
            raise ValueError("its description is no dictionary")
        return arrays, description
    except FileNotFoundError:
        raise
    except (struct.error, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise KnowledgeBaseCorruptError(
            f"{path}: the stored arrays cannot be read: {str(error)[:200]}. Download or copy the knowledge base again."
        ) from error


def _map_array(path: Path, start: int, size: int, entry: Mapping[str, Any]) -> np.ndarray:
    dtype, shape, (first, last) = np.dtype(_TYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and 0 <= number <= size for number in (first, last, *shape)):
        raise ValueError(f"an array has the shape {str(shape)[:80]} and the place {str((first, last))[:80]}")
    num_bytes = dtype.itemsize
    for number in shape:
        num_bytes *= number
    if last - first != num_bytes or start + last > size:
        raise ValueError(f"an array of shape {shape} needs {num_bytes:,} bytes and has {last - first:,}")
    if num_bytes < _MIN_MAPPED_BYTES:
        array = np.fromfile(path, dtype, num_bytes // dtype.itemsize, offset=start + first).reshape(shape)
        array.flags.writeable = False
        return array
    return np.memmap(path, dtype, "r", start + first, shape)
