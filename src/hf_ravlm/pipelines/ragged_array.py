"""Knows how rows of different length lie in one flat array, in memory or mapped from a file, and how they are padded.

Row `j` is `values[offsets[j]:offsets[j + 1]]`. On disk both arrays are one safetensors file, offsets first, so that it
can be written as a stream: their number is known before the first row, the number of values only after the last.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import InvalidInputError, KnowledgeBaseCorruptError
from ..saving.durable import temporary_file


# numpy has no bfloat16: its bits travel as uint16, and the file names them for what they are.
_STORED_TYPES = {"int32": "I32", "uint16": "BF16"}

# safetensors refuses longer headers; ours has a few hundred bytes.
_HEADER_KEY = "ravlm"
_MOST_VALUES = 10**15


class RaggedPart(NamedTuple):
    """Some consecutive rows: their values one after the other, (T, ...), and the length of each row, (n,)."""

    values: np.ndarray
    lengths: np.ndarray


class RaggedArray:
    """Rows of different length in one flat array.

    Args:
        values: Shape (T, ...), of int32, or of uint16 that stands for the bits of bfloat16. May be a memory map.
        offsets: Shape (N + 1,) in int64: where each row begins, and the end of the last.

    Raises:
        InvalidInputError: If the offsets do not begin with 0, do not end with T, or fall.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_ravlm.pipelines.ragged_array import RaggedArray
    >>> ragged = RaggedArray(np.array([7, 8, 9], np.int32), np.array([0, 1, 1, 3]))  # [7], [] and [8, 9]
    >>> padded, mask = ragged.gather(np.array([[2, 0]]), np.int64)
    >>> padded.tolist(), mask.tolist()
    ([[[8, 9], [7, 0]]], [[[True, True], [True, False]]])

    ```
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        fault = _fault_of(values, offsets)
        if fault:
            raise InvalidInputError(f"These are no rows of a flat array: {fault}.")
        self.values = values.view()
        self.offsets = offsets.view()
        self.values.flags.writeable = self.offsets.flags.writeable = False

    @classmethod
    def from_parts(cls, parts: Iterable[RaggedPart], dtype: Any = np.int32) -> RaggedArray:
        """Joins rows in memory; `dtype` is that of an array without any part."""
        values: list[np.ndarray] = []
        lengths = [np.zeros(1, np.int64)]
        for part in parts:
            first = values[0] if values else part.values
            _check_part(part, first.shape[1:], first.dtype)
            values.append(part.values)
            lengths.append(part.lengths)
        return cls(np.concatenate(values or [np.zeros(0, dtype)]), np.cumsum(np.concatenate(lengths)))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> tuple[RaggedArray, dict[str, Any]]:
        """Maps a stored array into memory, without reading its values.

        Args:
            path: A file written by `write_ragged`. It must not change while the array is in use.

        Returns:
            The array, and the description that was given to `write_ragged`.

        Raises:
            FileNotFoundError: If there is no file.
            KnowledgeBaseCorruptError: If it is damaged or holds something else.
        """
        values, offsets, description = _read_file(path)
        fault = _fault_of(values, offsets)
        if fault or not isinstance(description, dict):
            raise _broken(path, fault or "it has no description")
        return cls(values, offsets), description

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """The values of one row, as a view."""
        if not 0 <= row < len(self):
            raise IndexError(f"Row {row} is out of range; the array has {len(self)} rows.")
        values: np.ndarray = self.values[self.offsets[row] : self.offsets[row + 1]]
        return values

    def part(self) -> RaggedPart:
        """All rows, as `write_ragged` and `from_parts` take them; nothing is copied."""
        return RaggedPart(self.values, np.diff(self.offsets))

    def take(self, rows: np.ndarray) -> RaggedPart:
        """Some rows, copied: what remains after others were removed.

        Args:
            rows: Shape (n,), from 0 to N - 1.
        """
        starts, lengths = self._spans(_checked_rows(rows, len(self), lowest=0))
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
        return RaggedPart(self.values[positions], lengths)

    def gather(self, rows: np.ndarray, dtype: Any = None, pad_value: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Copies rows into one array, padded at the right to the longest of them.

        Args:
            rows: Shape (n, k) or any other; -1 stands for no row.
            dtype: The type of the result; `None` for that of the values.
            pad_value: What stands behind the end of a row.

        Returns:
            The values, of shape (n, k, L, ...), and a mask of shape (n, k, L), true where they are. L is the longest
            of these rows and at least 1, so that a model can run on passages without text as well.

        Raises:
            InvalidInputError: If a row is below -1 or beyond the last one, or the rows are no whole numbers.
        """
        rows = _checked_rows(rows, len(self), lowest=-1)
        starts, lengths = self._spans(rows)
        steps = np.arange(max(int(lengths.max(initial=0)), 1))
        mask = steps < lengths[..., None]  # (n, k, L)
        padded = np.full(
            (*mask.shape, *self.values.shape[1:]), pad_value, self.values.dtype if dtype is None else dtype
        )
        padded[mask] = self.values[(starts[..., None] + steps)[mask]]
        return padded, mask

    def _spans(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where rows begin and how long they are; -1, the row that is not there, is not longer than 0."""
        starts = self.offsets[rows]
        return starts, self.offsets[rows + 1] - starts  # -1: from the end of all values back to their beginning


def _read_file(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        # Through torch: it maps the file, and the numpy reader would copy it (and knows no bfloat16).
        with safe_open(path, framework="pt") as file:
            names, metadata = sorted(file.keys()), file.metadata() or {}
            if names != ["offsets", "values"]:
                raise _broken(path, f"it holds the arrays {names}")
            values, offsets = _as_numpy(file.get_tensor("values")), _as_numpy(file.get_tensor("offsets"))
        return values, offsets, json.loads(metadata.get(_HEADER_KEY, ""))
    except (FileNotFoundError, KnowledgeBaseCorruptError):
        raise
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise _broken(path, str(error)) from error


def write_ragged(
    path: str | os.PathLike[str],
    parts: Iterable[RaggedPart],
    num_rows: int,
    description: Mapping[str, Any],
    dtype: Any = np.int32,
) -> None:
    """Writes rows into one safetensors file as they come; in memory are one part and the offsets.

    The file appears at its path when it is whole. Equal input gives equal bytes.

    Args:
        path: The file.
        parts: The rows, in order.
        num_rows: How many there will be.
        description: JSON values to keep in the file.
        dtype: The type of the values, if there is no part: int32, or uint16 for the bits of bfloat16.

    Raises:
        InvalidInputError: If there were more or fewer rows, or a part differs from the first in type or width.
        OSError: If the disk refuses.
    """
    target = Path(path)
    with temporary_file(target.parent) as temporary:
        with open(temporary, "wb") as file:
            _write_stream(file, iter(parts), num_rows, description, np.dtype(dtype))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)


def _write_stream(
    file: BinaryIO, parts: Iterator[RaggedPart], num_rows: int, description: Mapping[str, Any], dtype: np.dtype[Any]
) -> None:
    offsets = np.zeros(num_rows + 1, np.int64)
    shape: tuple[int, ...] | None = None
    reserved, row, end = 0, 0, 0
    for part in parts:
        if shape is None:
            shape, dtype = part.values.shape[1:], part.values.dtype
            reserved = _start_file(file, num_rows, shape, dtype, description)
        _check_part(part, shape, dtype)
        if row + len(part.lengths) <= num_rows:
            offsets[row + 1 : row + 1 + len(part.lengths)] = end + np.cumsum(part.lengths)
            np.ascontiguousarray(part.values).tofile(file)
        row, end = row + len(part.lengths), end + len(part.values)
    if row != num_rows:
        raise InvalidInputError(f"{row} rows came instead of {num_rows}. Pass every row, with length 0 if empty.")
    if shape is None:
        shape = ()
        reserved = _start_file(file, num_rows, shape, dtype, description)
    file.seek(0)
    file.write(_header(num_rows, end, shape, dtype, description, reserved))
    offsets.tofile(file)


def _start_file(
    file: BinaryIO, num_rows: int, shape: tuple[int, ...], dtype: np.dtype[Any], description: Mapping[str, Any]
) -> int:
    """Leaves room for header and offsets; returns the bytes of the header."""
    length = len(_header(num_rows, _MOST_VALUES, shape, dtype, description, 0))
    length += -length % 8  # offsets and values aligned
    file.seek(length + 8 * (num_rows + 1))
    return length


def _header(
    num_rows: int,
    num_values: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    description: Mapping[str, Any],
    reserved: int,
) -> bytes:
    if dtype.name not in _STORED_TYPES:
        raise InvalidInputError(f"Values of type {dtype} cannot be stored. Expected one of {list(_STORED_TYPES)}.")
    first = 8 * (num_rows + 1)
    last = first + num_values * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    header = {
        "__metadata__": {_HEADER_KEY: json.dumps(description, sort_keys=True)},
        "offsets": {"dtype": "I64", "shape": [num_rows + 1], "data_offsets": [0, first]},
        "values": {"dtype": _STORED_TYPES[dtype.name], "shape": [num_values, *shape], "data_offsets": [first, last]},
    }
    # The format allows blanks after the header, not before it.
    text = json.dumps(header, separators=(",", ":")).encode().ljust(reserved - 8)
    return struct.pack("<Q", len(text)) + text


def _check_part(part: RaggedPart, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    values, lengths = part
    if values.shape[1:] != shape or values.dtype != dtype:
        raise InvalidInputError(
            f"Rows of shape {('T', *values.shape[1:])} and type {values.dtype} came after others of shape "
            f"{('T', *shape)} and type {dtype}. Every passage needs the same width and type."
        )
    if lengths.sum() != len(values) or (lengths < 0).any():
        raise InvalidInputError(f"Rows with {lengths.sum()} values in all came with {len(values)} values.")


def _checked_rows(rows: Any, num_rows: int, lowest: int) -> np.ndarray:
    array: np.ndarray = np.asarray(rows)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"The rows have the type {array.dtype}. Expected whole numbers.")
    array = array.astype(np.int64, copy=False)
    if (array - lowest).view(np.uint64).max() >= num_rows - lowest:  # one pass: what is too small is very large
        raise InvalidInputError(
            f"Rows from {array.min()} to {array.max()} were asked for. Expected {lowest} to {num_rows - 1}."
        )
    return array


def _fault_of(values: np.ndarray, offsets: np.ndarray) -> str | None:
    if values.dtype.name not in _STORED_TYPES or values.ndim < 1:
        return f"its values have the type {values.dtype}"
    if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) == 0:
        return f"its offsets are {offsets.dtype} of shape {offsets.shape} instead of int64 of shape (N + 1,)"
    if offsets[0] != 0 or offsets[-1] != len(values):
        return f"its offsets run from {offsets[0]} to {offsets[-1]} for {len(values)} values"
    if (offsets[1:] < offsets[:-1]).any():
        return "its offsets fall"
    return None


def _as_numpy(tensor: Any) -> np.ndarray:
    import torch

    array: np.ndarray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _broken(path: str | os.PathLike[str], reason: str) -> KnowledgeBaseCorruptError:
    return KnowledgeBaseCorruptError(
        f"{os.fspath(path)}: the stored rows cannot be read: {reason}. They are made from the passages: build them "
        "again."
    )
