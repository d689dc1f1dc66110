"""Which column of a table holds what: the names a user gives, the standard names, and the rest as metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from ...errors import InvalidInputError, UnsafeInputError
from ..passage import STANDARD_COLUMNS
from .checked_rows import SourceFault, SourceItem, SourceRow


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


class Record(NamedTuple):
    """One record of a table as it is written, and where it stands."""

    where: str
    values: Mapping[str, Any]


RecordItem = Record | SourceFault


def choose_columns(names: ColumnNames, seen: Sequence[str], source: str) -> tuple[dict[str, str], list[str]]:
    """Finds the column that holds each standard value, and the columns that become metadata.

    Args:
        names: What the user named.
        seen: The columns that there are.
        source: The table, for messages.

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
    metadata = names.get("metadata_columns")
    if metadata is None:
        return columns, [name for name in seen if name not in columns.values()]
    missing = [name for name in metadata if name not in seen]
    if missing:
        raise InvalidInputError(f"There are no columns {missing} in {source}. Its columns are {list(seen)}.")
    return columns, list(metadata)


def rows_from_records(
    records: Iterable[RecordItem],
    columns: Mapping[str, str],
    metadata_columns: Sequence[str],
    image_of: Callable[[Any, str], Any],
) -> Iterator[SourceItem]:
    """Makes rows of records; without an id column the number of a record is its id.

    Args:
        records: The records, and faults, which pass as they are.
        columns: The column that holds each standard value, as `choose_columns` finds them.
        metadata_columns: The columns that become metadata.
        image_of: Makes of an image cell, and of where it stands, something that `safe_image` takes, or refuses it.
    """
    for number, record in enumerate(records):
        if isinstance(record, SourceFault):
            yield record
            continue
        values = {standard: record.values.get(name) for standard, name in columns.items()}
        values.setdefault("id", number)
        try:
            values["image"] = image_of(values.get("image"), record.where)
        except (InvalidInputError, UnsafeInputError) as error:
            yield SourceFault(record.where, error, None if values["id"] is None else str(values["id"]))
            continue
        metadata = {name: record.values[name] for name in metadata_columns if record.values.get(name) is not None}
        yield SourceRow(record.where, values, metadata)
