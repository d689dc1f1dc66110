"""Arrays in a safetensors file, mapped into memory instead of copied."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import KnowledgeBaseCorruptError
from .durable import disk_errors


_TYPES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "|u1", "I8": "|i1", "U16": "<u2"}
_DESCRIPTION = "hf_ravlm"
_MIN_MAPPED_BYTES = 1_000_000  # mapping saves nothing for small arrays


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any] | None = None) -> None:
    """Writes arrays into a safetensors file; equal arrays give equal bytes.

    Args:
        path: The file.
        arrays: Arrays by name.
        description: JSON values to keep beside them.
    """
    # All in one key: safetensors writes several in random order.
    metadata = None if description is None else {_DESCRIPTION: json.dumps(description, sort_keys=True)}
    with disk_errors(path):
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
        with safe_open(path, "numpy") as file:  # which checks header, offsets and size
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
        kinds = {name: (np.dtype(_TYPES[part.get_dtype()]), part.get_shape()) for name, part in slices.items()}
        description = json.loads(metadata.get(_DESCRIPTION, "{}"))
        if not isinstance(description, dict):
            raise ValueError("its description is no dictionary")
        # safetensors would copy what it reads. The arrays stand end to end at the end of the file, so we map them.
        start = path.stat().st_size - sum(dtype.itemsize * math.prod(shape) for dtype, shape in kinds.values())
        arrays = {}
        for name, (dtype, shape) in kinds.items():
            arrays[name] = _mapped(path, start, dtype, tuple(shape))
            start += arrays[name].nbytes
        return arrays, description
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise KnowledgeBaseCorruptError(
            f"{path}: the stored arrays cannot be read: {str(error)[:200]}. Download or copy the knowledge base again."
        ) from error


def _mapped(path: Path, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    if count * dtype.itemsize < _MIN_MAPPED_BYTES:
        array = np.fromfile(path, dtype, count, offset=start).reshape(shape)
        array.flags.writeable = False
        return array
    return np.memmap(path, dtype, "r", start, shape)
