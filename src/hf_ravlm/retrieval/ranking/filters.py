"""Conditions on columns and metadata, which passages must satisfy before any search.

    {"licence": "CC0-1.0"}                         equal to
    {"source": ["birds", "fish"]}                  one of
    {"metadata.colour": "red"}                     a key of the metadata; plain "colour" finds it, too
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
from ...sequences import is_column
from ...text import plain_json, plain_text
from ..metadata import metadata_table
from ..passage import SCHEMA


FILTER_COLUMNS = tuple(column for column in SCHEMA.names if column not in ("image", "metadata"))

_PREFIX = "metadata."
_MAX_SHOWN = 30


def matching_rows(table: pa.Table, where: Mapping[str, Any], metadata: pa.Table | None = None) -> np.ndarray:
    """Says for every passage whether it satisfies all conditions.

    Args:
        table: The table of a knowledge base.
        where: Conditions (see the head of this file) by column: `"id"`, `"title"`, `"source"`, `"licence"`, `"url"`,
            `"text"`, or `"metadata."` and a key, with further keys behind dots for values within values. `"metadata."`
            may be left out where there is no such column. A condition is a value, a list of values of which one must
            fit, `{"min": ..., "max": ...}`, `{"not": ...}` or `None` for no value.
        metadata: What `metadata_table(table)` returned; `None` decodes it if needed.

    Returns:
        A bool array of shape (N,).

    Raises:
        InvalidInputError: If there is no such column or key, or a condition does not fit its type.

    >>> from hf_ravlm.retrieval import KnowledgeBase
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
        name = checked_name(name)
        if asks_metadata(name) and metadata is None:
            metadata = metadata_table(table)
        column = _column(table, metadata, name)
        matching &= _satisfied(column, plain_condition(condition, name), name)
    return matching


def same_value(
    table: pa.Table, name: str, rows: Sequence[int], metadata: pa.Table | None = None
) -> list[dict[str, Any]]:
    """For passages in some rows the condition that those with the same value fulfil; without one, only the passage.

    Args:
        table, metadata: As in `matching_rows`.
        name: A column or a key of the metadata.
        rows: Rows of the table.

    Raises:
        InvalidInputError: If there is no such column or key, or it holds lists or dictionaries.

    >>> from hf_ravlm.retrieval import KnowledgeBase
    >>> knowledge_base = KnowledgeBase.from_dicts(
    ...     [{"id": "song", "text": "It sings.", "bird": "wren"}, {"id": "note", "text": "Birds sing."}]
    ... )
    >>> same_value(knowledge_base.table, "bird", [0, 1])
    [{'bird': 'wren'}, {'id': 'note'}]
    """
    name = checked_name(name)
    if asks_metadata(name) and metadata is None:
        metadata = metadata_table(table)
    column = _column(table, metadata, name)
    if pa.types.is_nested(column.type):
        raise InvalidInputError(f"{name!r} holds {column.type}: passages are grouped by single values.")
    places = pa.array(rows, pa.int64())
    pairs = zip(column.take(places).to_pylist(), table["id"].take(places).to_pylist(), strict=True)
    return [{"id": own} if value is None else {name: value} for value, own in pairs]


def checked_name(name: Any) -> str:
    """The name of a column or key, as it is stored; `InvalidInputError` if it is no text."""
    if not isinstance(name, str):
        raise InvalidInputError(f"A condition is on {name!r} of type {type(name).__name__}. Expected a name.")
    return plain_text(name, "a key of `where`")


def asks_metadata(name: Any) -> bool:
    """Whether a condition is on metadata: `"metadata."` and a key, or a plain key that is no column."""
    return isinstance(name, str) and name not in FILTER_COLUMNS


def plain_condition(condition: Any, name: str) -> Any:
    """A condition as it is stored and compared: its texts as of `hf_ravlm.text`, of many `"not"` one or none.

    Raises:
        InvalidInputError: If a text holds half of a character pair.

    >>> plain_condition({"not": {"not": {"not": "Ko\u0308ln"}}}, "place")
    {'not': 'Köln'}
    """
    negated = False
    while isinstance(condition, Mapping) and set(condition) == {"not"}:
        condition, negated = condition["not"], not negated
    if isinstance(condition, (set, frozenset)) or is_column(condition):
        condition = list(condition)
    if isinstance(condition, list) and any(isinstance(item, (list, tuple, Mapping)) for item in condition):
        raise InvalidInputError(f"The list of values on {name!r} holds lists or conditions. Expected plain values.")
    if not isinstance(condition, Mapping) or set(condition) <= {"min", "max"}:
        condition = plain_json(condition, f"the condition on {name!r}")
    return {"not": condition} if negated else condition


def _column(table: pa.Table, metadata: pa.Table | None, name: str) -> pa.ChunkedArray:
    if not asks_metadata(name):
        return table[name]
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
    known = [f"{_PREFIX}{key}" for key in metadata.column_names] or ["no metadata"]
    shown = known[:_MAX_SHOWN] + ["..."] * (len(known) > _MAX_SHOWN)
    if not name.startswith(_PREFIX):
        raise InvalidInputError(
            f"There is no column {name!r}, and no passage has the metadata {name!r}. Choose one of "
            f"{', '.join(FILTER_COLUMNS)}; there is: {', '.join(shown)}."
        )
    raise InvalidInputError(f"No passage has the metadata {name!r}. There is: {', '.join(shown)}.")


def _satisfied(column: pa.ChunkedArray, condition: Any, name: str) -> np.ndarray:
    if isinstance(condition, Mapping) and set(condition) == {"not"}:
        return ~_satisfied(column, condition["not"], name)
    if condition is None:
        return _as_numpy(pc.is_null(column))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lists = column.combine_chunks()
        parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        matching = np.zeros(len(column), bool)
        matching[parents[_satisfied(pa.chunked_array([pc.list_flatten(lists)]), condition, name)]] = True
        return matching
    if isinstance(condition, Mapping):
        if not condition or not set(condition) <= {"min", "max"}:
            raise InvalidInputError(
                f"The condition {condition!r} on {name!r} is not known. Expected a value, a list of values, "
                '{"min": ..., "max": ...} or {"not": ...}.'
            )
        inside = _as_numpy(pc.is_valid(column))
        for compare, bound in ((pc.greater_equal, condition.get("min")), (pc.less_equal, condition.get("max"))):
            if bound is not None:
                inside &= _compared(compare, column, bound, name)
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
    whole = all(isinstance(value, (int, np.integer)) for value in present)
    if pa.types.is_floating(column.type) or (pa.types.is_integer(column.type) and not whole):
        column = column.cast(pa.float64(), safe=False)
    listed: np.ndarray = found | _as_numpy(pc.is_in(column, value_set=pa.array(present, column.type)))
    return listed


def _compared(compare: Any, column: pa.ChunkedArray, value: Any, name: str) -> np.ndarray:
    _check_type(column.type, value, name)
    if pa.types.is_null(column.type):
        return np.zeros(len(column), bool)
    return _as_numpy(compare(column, pa.scalar(value.item() if isinstance(value, np.generic) else value)))


def _check_type(kind: pa.DataType, value: Any, name: str) -> None:
    """Refuses to compare texts with numbers: nothing would match, without a word."""
    if pa.types.is_null(kind):
        return
    types: tuple[type, ...] = ()
    held, hint = str(kind), ""
    if pa.types.is_boolean(kind):
        held, types = "true or false", (bool, np.bool_)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        held, types = "texts", (str,)
        hint = " Numbers read from a CSV file are texts." if isinstance(value, (int, float)) else ""
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        held, types = "numbers", (int, float, np.number)
    if not isinstance(value, types) or (held == "numbers" and isinstance(value, bool)):
        raise InvalidInputError(
            f"{name!r} holds {held}, and the condition compares with {value!r} of type {type(value).__name__}.{hint}"
        )


def _as_numpy(mask: Any) -> np.ndarray:
    """A bool array; where Arrow does not know, the answer is no."""
    array: np.ndarray = pc.fill_null(mask, False).to_numpy()
    return array.astype(bool)
