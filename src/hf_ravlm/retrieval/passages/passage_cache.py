"""Knows what was computed for the passages that are asked for most, and never holds more bytes than it may.

Keys and values of a whole language model cost megabytes per passage (2.3 MB for 100 tokens of a 135M model, 2.3 TB
for a million passages), so they are kept for few passages only: those used last.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from ...errors import InvalidInputError


class PassageCache:
    """Keeps values of passages until others that were used later need their room. Safe for threads.

    The key must name everything that a value depends on: the passage, and the weights if they may change. A value is
    handed out as it is, not copied: who changes it changes it for all.

    Args:
        max_bytes: The bound. It counts the memory of tensors and arrays, a shared one once per value.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_ravlm.retrieval.passages.passage_cache import PassageCache
    >>> cache = PassageCache(max_bytes=2_000)
    >>> for passage_id in ("robin", "wren"):
    ...     cache.put(passage_id, np.zeros(100))  # 800 bytes each
    True
    True
    >>> cache.get("robin").shape
    (100,)
    >>> cache.put("swan", np.zeros(100)), "wren" in cache, "robin" in cache
    (True, False, True)

    ```
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise InvalidInputError(f"max_bytes={max_bytes}: expected at least 0.")
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        """Whether a value is there; does not count as use."""
        return key in self._entries

    def __repr__(self) -> str:
        return f"PassageCache({len(self)} passages, {self.num_bytes} of {self.max_bytes} bytes)"

    def get(self, key: Hashable) -> Any:
        """Returns the value of a key, or `None`."""
        with self._lock:
            if key not in self._entries:
                self.num_misses += 1
                return None
            self.num_hits += 1
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: Any) -> bool:
        """Keeps a value in place of those that were not used for longest.

        Args:
            key: Such as a row, or a pair of a fingerprint and a passage id.
            value: Tensors and arrays in any nesting of lists, tuples and dictionaries.

        Returns:
            Whether it is kept; one that is larger than the whole cache is not, and its older value is dropped.

        Raises:
            InvalidInputError: If the value holds something whose memory is unknown.
        """
        num_bytes = memory_of(value)
        with self._lock:
            self._drop(key)
            if num_bytes > self.max_bytes:
                return False
            while self.num_bytes + num_bytes > self.max_bytes:
                self._drop(next(iter(self._entries)))
            self._entries[key] = (value, num_bytes)
            self.num_bytes += num_bytes
            return True

    def remove(self, key: Hashable) -> None:
        """Drops a value, if it is there: its passage was changed or removed."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0

    def _drop(self, key: Hashable) -> None:
        _, num_bytes = self._entries.pop(key, (None, 0))
        self.num_bytes -= num_bytes


def memory_of(value: Any) -> int:
    """Returns the bytes that stay in memory as long as a value does.

    A view keeps the whole of what it looks at: one row of a large tensor counts as the large tensor.

    Args:
        value: Tensors and arrays in any nesting of lists, tuples and dictionaries; `None` counts nothing.

    Raises:
        InvalidInputError: If something else is in it.
    """
    sizes: dict[tuple[str, int], int] = {}
    _collect(value, sizes)
    return sum(sizes.values())


def _collect(value: Any, sizes: dict[tuple[str, int], int]) -> None:
    if value is None:
        return
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, sizes)
    elif hasattr(value, "untyped_storage"):
        storage = value.untyped_storage()
        sizes[str(value.device), storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, np.ndarray):
        if isinstance(value.base, np.ndarray) or hasattr(value.base, "untyped_storage"):
            _collect(value.base, sizes)
        else:
            sizes["cpu", value.ctypes.data] = value.nbytes
    else:
        raise InvalidInputError(
            f"A {type(value).__name__} has no known size. Cache tensors and arrays, in lists, tuples or dictionaries."
        )
