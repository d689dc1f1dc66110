"""Arrays that grow at their end without a copy: with spare rows in memory, or behind the pages of a mapped file."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np


_MIN_MAPPED_BYTES = 1_000_000
_FIXED = 0x10  # MAP_FIXED on Linux and macOS
_NO_RESERVE = 0x4000 if sys.platform.startswith("linux") else 0  # spare rows count as memory once they are written


class GrowingArray:
    """An array with spare rows at its end, so that adding a few vectors does not copy all of them.

    States that follow each other share it: each sees the first rows, as many as it has, and these never change. Rows
    of a mapped file stay in the file: the spare rows lie behind its pages.
    """

    def __init__(self) -> None:
        self._array = np.zeros((0, 0), np.float32)
        self._used = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (GrowingArray, ())

    def extended(self, vectors: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Returns vectors (N, D) and new ones (m, D) end to end, (N + m, D)."""
        num_rows, stop = len(vectors), len(vectors) + len(new)
        with self._lock:
            is_tip = num_rows == self._used and np.shares_memory(vectors[:1], self._array[:1])
            if not is_tip or stop > len(self._array):
                self._array = with_room(vectors, len(new) + stop // 4)
            self._array[num_rows:stop] = new
            self._used = stop
            return self._array[:stop]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Parts (n, D) of one width end to end; a large first one that is mapped stays in its file."""
    if len(parts) == 1:
        return parts[0]
    first, rest = parts[0], parts[1:]
    together, row = with_room(first, sum(map(len, rest))), len(first)
    for part in rest:
        together[row : row + len(part)] = part
        row += len(part)
    together.flags.writeable = False
    return together


def with_room(vectors: np.ndarray, spare_rows: int) -> np.ndarray:
    """An array that begins with the vectors and has spare rows behind them: a copy, unless they are mapped.

    Example: what is written into the spare rows is nowhere but in memory.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "numbers")
    ...     np.arange(600_000, dtype=np.float32).tofile(path)
    ...     longer = with_room(np.memmap(path, np.float32, "r", shape=(300_000, 2)), 5)
    ...     longer[300_000] = 7
    ...     longer.shape, longer[299_999:300_001].tolist(), os.path.getsize(path)
    ((300005, 2), [[599998.0, 599999.0], [7.0, 7.0]], 2400000)
    """
    mapped = _mapped_with_room(vectors, spare_rows) if vectors.nbytes >= _MIN_MAPPED_BYTES else None
    if mapped is not None:
        return mapped
    array = np.empty((len(vectors) + spare_rows, vectors.shape[1]), np.float32)
    array[: len(vectors)] = vectors
    return array


class _Region:
    """Memory from `mmap`, given back when no array looks at it any more."""

    def __init__(self, system: Any, address: int, num_bytes: int, start: int, shape: tuple[int, int]) -> None:
        self._system, self._address, self._num_bytes = system, address, num_bytes
        data = (address + start, False)
        self.__array_interface__ = {"data": data, "shape": shape, "typestr": "<f4", "version": 3}

    def __del__(self) -> None:
        self._system.munmap(self._address, self._num_bytes)


def _mapped_with_room(vectors: np.ndarray, spare_rows: int) -> np.ndarray | None:
    """As `with_room`; `None` where the vectors are not mapped, or the system does not do it.

    A range of addresses is reserved, and the file mapped once more over its beginning, private to this process: its
    pages are those that every other reader shares, and nothing that is written goes back.
    """
    source = _memory_map_of(vectors)
    system = _system()
    if source is None or system is None or vectors.dtype != np.dtype("<f4") or not vectors.flags.c_contiguous:
        return None
    start = source.offset + vectors.ctypes.data - source.ctypes.data
    first = start - start % mmap.ALLOCATIONGRANULARITY
    filled = start - first + vectors.nbytes
    total = filled + max(spare_rows, 1) * vectors.shape[1] * 4
    access, private = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _NO_RESERVE
    address = system.mmap(None, total, access, private | mmap.MAP_ANONYMOUS, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    shape = (len(vectors) + spare_rows, vectors.shape[1])
    region = _Region(system, address, total, start - first, shape)
    try:
        with open(str(source.filename), "rb") as file:
            placed = system.mmap(address, filled, access, private | _FIXED, file.fileno(), first)
    except OSError:  # the file is gone; who has mapped it may go on reading
        return None
    if placed != address:
        return None
    array = np.asarray(region)
    ends = [0, len(vectors) - 1]  # another file may have taken the name
    return array if np.array_equal(array[ends], vectors[ends]) else None


def _memory_map_of(array: Any) -> np.memmap | None:
    while array is not None:
        if isinstance(array, np.memmap) and array.filename is not None and array.base is not None:
            if not isinstance(array.base, np.ndarray):  # the map itself, not a part of it
                return array
        array = getattr(array, "base", None)
    return None


def _system() -> Any:
    """The C library with `mmap`; `None` where there is none."""
    if sys.platform == "win32":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
    ]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library
