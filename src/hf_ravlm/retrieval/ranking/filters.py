"""Conditions on columns and metadata, which passages must satisfy before any search.

    {"licence": "CC0-1.0"}                         equal to
    {"source": ["birds", "fish"]}                  one of
    {"metadata.year": {"min": 1900, "max": 2000}}  from ... to, both included; one of the two may be left out
    {"metadata.place": {"not": "Paris"}}           anything but this, also no value at all
    {"url": None}                                  no value

All conditions must hold. A column that holds lists, such as tags, satisfies one that any element of it satisfies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InvalidInputError
from ..metadata import metadata_table


_PREFIX = "metadata."
_MAX_SHOWN = 30


def matching_rows(table: pa.Table, where: Mapping[str, Any], metadata: pa.Table | None = None) -> np.ndarray:
    """Says for every passage whether it satisfies all conditions.

    Args:
        table: The table of a knowledge base.
        where: Conditions by column: `"id"`, `"title"`, `"source"`, `"licence"`, `"url"`, `"text"`, or `"metadata."`
            and a key, with further keys behind dots for values within values. See the head of this file.
        metadata: What `metadata_table(table)` returned, to spare decoding it again; `None` decodes it if needed.

    Returns:
        A bool array of shape (N,).

    Raises:
        InvalidInputError: If there is no such column or key, or a condition does not fit its type.

    Example:

    >>> from hf_ravlm.retrieval import KnowledgeBase
    >>> from hf_ravlm.retrieval.ranking.filters import matching_rows
    >>> knowledge_base = KnowledgeBase.from_dicts(
    ...     [
    ...         {"id": "robin", "text": "An orange breast.", "licence": "CC0-1.0", "length_cm": 14},
    ...         {"id": "wren", "text": "Small and loud.", "licence": "CC0-1.0", "length_cm": 10},
    ...     ]
    ... )
    >>> matching_rows(knowledge_base.table, {"licence": "CC0-1.0", "metadata.length_cm": {"max": 12}}).tolist()
    [False, True]
    """
    if not isinstance(where, Mapping):
        raise InvalidInputError(f"where={where!r}: expected a dictionary, such as {{'source': 'birds'}}.")
    matching = np.ones(table.num_rows, bool)
    for name, condition in where.items():
        if name.startswith(_PREFIX) and metadata is None:
            metadata = metadata_table(table)
        column = _column(table, metadata, name)
        matching &= _satisfied(column, condition, name)
    return matching


def _column(table: pa.Table, metadata: pa.Table | None, name: str) -> pa.ChunkedArray:
    filterable = [column for column in table.column_names if column not in ("image", "metadata")]
    if not name.startswith(_PREFIX):
        if name in filterable:
            return table[name]
        raise InvalidInputError(
            f"There is no column {name!r} to filter by. Choose one of {', '.join(filterable)}, or 'metadata.<key>'."
        )
    assert metadata is not None
    key = name.removeprefix(_PREFIX)
    if key in metadata.column_names:
        return metadata[key]
    first, *inner = key.split(".")
    if first in metadata.column_names:
        column = metadata[first]
        for part in inner:
            if not pa.types.is_struct(column.type) or column.type.get_field_index(part) < 0:
                break
            column = pc.struct_field(column, part)
        else:
            return column
    known = [f"{_PREFIX}{key}" for key in metadata.column_names]
    more = ", ..." if len(known) > _MAX_SHOWN else ""
    raise InvalidInputError(
        f"No passage has the metadata {name!r}. There is: {', '.join(known[:_MAX_SHOWN]) or 'no metadata'}{more}."
    )


def _satisfied(column: pa.ChunkedArray, condition: Any, name: str) -> np.ndarray:
    if isinstance(condition, Mapping) and set(condition) == {"not"}:
        return ~_satisfied(column, condition["not"], name)
    if condition is None:
        return _as_numpy(pc.is_null(column))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _any_element(column, condition, name)
    if isinstance(condition, Mapping):
        if not condition or not set(condition) <= {"min", "max"}:
            raise InvalidInputError(
                f"The condition {condition!r} on {name!r} is not known. Expected a value, a list of values, "
                '{"min": ..., "max": ...} or {"not": ...}.'
            )
        least, most = condition.get("min"), condition.get("max")
        inside = np.ones(len(column), bool)
        if least is not None:
            inside &= _compared(pc.greater_equal, column, least, name)
        if most is not None:
            inside &= _compared(pc.less_equal, column, most, name)
        inside &= _as_numpy(pc.is_valid(column))
        return inside
    if isinstance(condition, (list, tuple, set, frozenset)):
        return _one_of(column, list(condition), name)
    return _compared(pc.equal, column, condition, name)


def _one_of(column: pa.ChunkedArray, values: Sequence[Any], name: str) -> np.ndarray:
    present = [value for value in values if value is not None]
    for value in present:
        _check_type(column.type, value, name)
    found = np.zeros(len(column), bool) if len(present) == len(values) else _as_numpy(pc.is_null(column))
    if not present or pa.types.is_null(column.type):
        return found
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    wide = column.cast(pa.float64(), safe=False) if numbers and not _all_whole(column.type, present) else column
    listed: np.ndarray = found | _as_numpy(pc.is_in(wide, value_set=pa.array(present, wide.type)))
    return listed


def _all_whole(kind: pa.DataType, values: Sequence[Any]) -> bool:
    return bool(pa.types.is_integer(kind)) and all(isinstance(value, (int, np.integer)) for value in values)


def _compared(compare: Any, column: pa.ChunkedArray, value: Any, name: str) -> np.ndarray:
    _check_type(column.type, value, name)
    if pa.types.is_null(column.type):
        return np.zeros(len(column), bool)
    return _as_numpy(compare(column, pa.scalar(value.item() if isinstance(value, np.generic) else value)))


def _check_type(kind: pa.DataType, value: Any, name: str) -> None:
    """Refuses to compare texts with numbers: nothing would match, without a word."""
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if pa.types.is_null(kind):
        return
    if pa.types.is_boolean(kind):
        fits = isinstance(value, (bool, np.bool_))
    elif text:
        fits = isinstance(value, str)
    else:
        fits = number and isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not fits:
        held = (
            "texts" if text else "numbers" if number else "true or false" if pa.types.is_boolean(kind) else str(kind)
        )
        hint = " Numbers read from a CSV file are texts." if text and isinstance(value, (int, float)) else ""
        raise InvalidInputError(
            f"{name!r} holds {held}, and the condition compares with {value!r} of type {type(value).__name__}.{hint}"
        )


def _any_element(column: pa.ChunkedArray, condition: Any, name: str) -> np.ndarray:
    lists = column.combine_chunks()
    matching = np.zeros(len(column), bool)
    elements = pa.chunked_array([pc.list_flatten(lists)])
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    matching[parents[_satisfied(elements, condition, name)]] = True
    return matching


def _as_numpy(mask: Any) -> np.ndarray:
    """A bool array; where Arrow does not know, the answer is no."""
    array: np.ndarray = pc.fill_null(mask, False).to_numpy()
    return array.astype(bool)
