"""What counts as several things, and what as one: lists, tuples and columns of tables beside texts and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_column(value: Any) -> bool:
    """Whether something holds one thing a row: a list, a tuple, or a column of `datasets`, pandas or NumPy.

    Texts, bytes and dictionaries are one thing; so is an array of several dimensions, which is an image.

    >>> is_column(("a", "b")), is_column("ab"), is_column({"a": 1}), is_column(None)
    (True, False, False, False)
    """
    if isinstance(value, (list, tuple)):
        return True
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or hasattr(value, "column_names"):
        return False
    rows = all(hasattr(value, name) for name in ("__len__", "__getitem__", "__iter__"))
    return rows and len(getattr(value, "shape", (1,))) == 1


def listed(value: Any) -> list[Any]:
    """What `is_column` takes as a list; anything else in a list alone.

    >>> listed(("a", "b")), listed("ab"), listed(None)
    (['a', 'b'], ['ab'], [None])
    """
    return list(value) if is_column(value) else [value]
