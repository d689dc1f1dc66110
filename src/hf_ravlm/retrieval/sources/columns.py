"""Knows which column of a table holds what: the names a user gives, the standard names, and the rest as metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ...errors import InvalidInputError
from ..passage import STANDARD_COLUMNS
from .checked_rows import SourceRow


class ColumnNames(TypedDict, total=False):
    """Which column of a table holds what; see `KnowledgeBase`."""

    id_column: str | None
    text_column: str | None
    image_column: str | None
    source_column: str | None
    licence_column: str | None
    url_column: str | None
    revision_column: str | None
    title_column: str | None
    metadata_columns: Sequence[str] | None


def choose_columns(names: ColumnNames, seen: Sequence[str], source: str) -> tuple[dict[str, str], list[str]]:
    """Finds the columns of a table.

    Args:
        names: What the user named.
        seen: The columns that there are.
        source: The table, for messages.

    Returns:
        The column that holds each standard value, and the columns that become metadata.

    Raises:
        InvalidInputError: If a column that is needed is missing.
        TypeError: If `names` has a key that is no argument.
    """
    unknown = set(names) - set(ColumnNames.__annotations__)
    if unknown:
        raise TypeError(f"Unknown arguments {sorted(unknown)}. Choose from {list(ColumnNames.__annotations__)}.")
    columns: dict[str, str] = {}
    for standard in STANDARD_COLUMNS:
        name = names.get(f"{standard}_column", standard)
        if name == "licence" and name not in seen:
            name = "license" if "license" in seen else name
        if name in seen:
            columns[standard] = str(name)
        elif name is not None and (name != standard or standard == "id"):
            hint = " `id_column=None` numbers the rows." if standard == "id" else ""
            raise InvalidInputError(
                f"There is no column {name!r} in {source}. Its columns are {list(seen)}. Name the right one with "
                f"`{standard}_column=...`.{hint}"
            )
    if "text" not in columns and "image" not in columns:
        raise InvalidInputError(
            f"Neither text nor image was found in {source}. Its columns are {list(seen)}. Name them with "
            "`text_column=...` or `image_column=...`."
        )
    return columns, _choose_metadata(names.get("metadata_columns"), seen, columns, source)


def _choose_metadata(
    asked: Sequence[str] | None, seen: Sequence[str], columns: Mapping[str, str], source: str
) -> list[str]:
    if asked is None:
        return [name for name in seen if name not in columns.values()]
    missing = [name for name in asked if name not in seen]
    if missing:
        raise InvalidInputError(f"There are no columns {missing} in {source}. Its columns are {list(seen)}.")
    return list(asked)


def row_from_record(
    where: str, number: int, record: Mapping[str, Any], columns: Mapping[str, str], metadata_columns: Sequence[str]
) -> SourceRow:
    """Makes a row of a record; without an id column its number is the id."""
    values: dict[str, Any] = {standard: record.get(name) for standard, name in columns.items()}
    if "id" not in columns:
        values["id"] = number
    return SourceRow(where, values, {name: record[name] for name in metadata_columns if record.get(name) is not None})
