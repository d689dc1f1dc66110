"""A `where` mapping as an expression of Milvus, in which no value can become a part of the expression.

Names of columns come from a fixed list; keys of metadata and all values are written as literals. The answers are those
of `retrieval.ranking.filters.matching_rows`, except that a metadata key that no passage has, or a value of another
type than theirs, matches nothing and is not refused; a key with a dot in its name cannot be asked for; and a list
satisfies a value in it, but no range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ...retrieval.ranking.filters import FILTER_COLUMNS, checked_name, plain_condition


_NOTHING = 'id == ""'  # ids are never empty
_LARGEST_INTEGER = 2**63 - 1
# The grammar of Milvus forbids these within quotes.
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def milvus_filter(where: Mapping[str, Any] | None) -> str:
    r"""Returns the expression that selects the passages which satisfy all conditions; an empty one selects all.

    Args:
        where: Maps `id`, `text`, `source`, `licence`, ... or `metadata.<key>` to a value, a list of values of which
            one must fit, `{"min": ..., "max": ...}`, or `{"not": ...}`; `None` stands for an empty column.

    Raises:
        InvalidInputError: If a column is unknown or a value is none of these.

    Example:

    ```python
    >>> from hf_ravlm.integrations.milvus.filters import milvus_filter
    >>> print(milvus_filter({"licence": ["CC0-1.0", "MIT"], "metadata.year": {"min": 1900}}))
    (licence in ["CC0-1.0", "MIT"]) and (metadata["year"] >= 1900)
    >>> print(milvus_filter({"title": 'x" or id != "'}))
    (title == "x\" or id != \"")

    ```
    """
    if where is not None and not isinstance(where, Mapping):
        raise InvalidInputError(f"where={where!r}: expected a dictionary, such as {{'source': 'birds'}}.")
    conditions = []
    for name, value in (where or {}).items():
        name = checked_name(name)
        conditions.append(_condition(name, plain_condition(value, name)))
    return " and ".join(f"({condition})" for condition in conditions)


def _condition(name: str, value: Any) -> str:
    field = _field(name)
    expression, matches_empty = _parts(field, value, name)
    # What an expression says of a missing value is spelled out: servers of different age disagree about it.
    if expression is None:
        return f"{field} is null" if matches_empty else f"{field} is not null"
    if matches_empty:
        return f"{field} is null or ({expression})"
    return f"{field} is not null and {expression}" if expression.startswith("not ") else expression


def _field(name: str) -> str:
    column, *keys = name.split(".")
    if column == "metadata" and all(keys) and keys:
        return "metadata" + "".join(f"[{_literal(key, name)}]" for key in keys)
    if name not in FILTER_COLUMNS:
        raise InvalidInputError(
            f"There is no column {name!r} to filter by. Choose from {', '.join(FILTER_COLUMNS)}, or 'metadata.<key>'."
        )
    return name


def _parts(field: str, value: Any, name: str) -> tuple[str | None, bool]:
    """The expression for values that are there, and whether an empty column satisfies the condition.

    Without an expression, `None`, the condition is the second alone: empty columns, or all others.
    """
    if value is None:
        return None, True
    if isinstance(value, Mapping):
        if set(value) == {"not"}:
            expression, matches_empty = _parts(field, value["not"], name)
            return None if expression is None else f"not ({expression})", not matches_empty
        if value and set(value) <= {"min", "max"}:
            bounds = [(sign, value.get(key)) for key, sign in (("min", ">="), ("max", "<="))]
            for _, bound in bounds:
                _check_text(field, bound, name)
            parts = [f"{field} {sign} {_literal(bound, name)}" for sign, bound in bounds if bound is not None]
            return " and ".join(parts) or None, False
        raise InvalidInputError(
            f"The condition {value!r} on {name!r} is not known. Expected a value, a list of values, "
            '{"min": ..., "max": ...} or {"not": ...}.'
        )
    if not isinstance(value, (list, tuple, set, frozenset)):
        return _equal(field, value, name), False
    given = [item for item in value if item is not None]
    if field in FILTER_COLUMNS and given:
        expression = f"{field} in [{', '.join(_literal(item, name) for item in given)}]"
    else:  # milvus-lite knows no `in` for keys of metadata
        expression = " or ".join(_equal(field, item, name) for item in given) or _NOTHING
    return expression, len(given) < len(value)


def _equal(field: str, value: Any, name: str) -> str:
    literal = _literal(value, name)
    if field not in FILTER_COLUMNS:
        # Not every server takes a negative number alone there.
        is_in = (
            f"json_contains_any({field}, [{literal}])" if literal[0] == "-" else f"json_contains({field}, {literal})"
        )
        return f"{field} == {literal} or {is_in}"
    _check_text(field, value, name)
    return f"{field} == {literal}"


def _check_text(field: str, value: Any, name: str) -> None:
    """Columns hold texts: Milvus compares them with nothing else."""
    if field in FILTER_COLUMNS and value is not None and not isinstance(value, str):
        raise InvalidInputError(
            f"{name!r} holds texts, and the condition compares with {value!r} of type {type(value).__name__}."
        )


def _literal(value: Any, name: str) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    if isinstance(value, int) and abs(value) <= _LARGEST_INTEGER:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise InvalidInputError(
        f"The condition on {name!r} holds {value!r} of type {type(value).__name__}. Expected a text, a finite number "
        "of at most 64 bits, true or false."
    )
