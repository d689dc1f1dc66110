"""Which column of a table holds what: the names a user gives, the standard names, and the rest as metadata."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from ...errors import InvalidInputError, UnsafeInputError
from ...text import clean_text
from ..passage import STANDARD_COLUMNS
from .checked_rows import SourceFault, SourceItem, SourceRow


# What people call them, the likeliest first; case, blanks, `-` and `_` around and between words do not matter.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "id": ("_id", "doc_id", "docid", "passage_id", "identifier"),
    "text": ("caption", "description", "content", "contents", "page_content", "body", "passage"),
    "image": ("image_path", "file_name", "filename", "img", "picture", "photo", "image_file", "img_path"),
    "title": ("name", "label"),
    "licence": ("license",),
}
_NUMBER = re.compile(r"[+-]?(\d+|(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?)")


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
    numeric_columns: Sequence[str]


class Record(NamedTuple):
    """One record of a table as it is written, and where it stands."""

    where: str
    values: Mapping[str, Any]


RecordItem = Record | SourceFault


class Columns(NamedTuple):
    """The column of each standard value, those that become metadata, and of these the ones that hold numbers."""

    standard: dict[str, str]
    metadata: list[str]
    numeric: frozenset[str]


def find_column(wanted: str, seen: Sequence[str], synonyms: Sequence[str] = ()) -> str | None:
    """The column with a name, in any case and with any blanks, or else with the first of its synonyms that is there.

    Raises:
        InvalidInputError: If two columns differ in case or blanks alone, and none of them is the name itself.

    >>> find_column("text", ["ID", " Text "]), find_column("text", ["id", "Page Content"], ["page_content"])
    (' Text ', 'Page Content')
    """
    for name in (wanted, *synonyms):
        if name in seen:
            return name
        alike = [column for column in seen if isinstance(column, str) and _plain(column) == _plain(name)]
        if len(alike) > 1:
            raise InvalidInputError(f"The columns {alike} are both called {name!r}. Rename one of them.")
        if alike:
            return alike[0]
    return None


def check_one_name_each(names: Sequence[str], source: str) -> None:
    """Raises `InvalidInputError` if two columns have one name: one of them would be lost."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names, start=1):
        places.setdefault(name, []).append(place)
    if repeated := {name: found for name, found in places.items() if len(found) > 1}:
        shown = "; ".join(f"{name!r} as columns {' and '.join(map(str, found))}" for name, found in repeated.items())
        raise InvalidInputError(f"{source}: the columns {list(repeated)} occur twice ({shown}). Rename them.")


def choose_columns(names: ColumnNames, seen: Sequence[str], source: str) -> Columns:
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
    check_one_name_each(seen, source)
    columns: dict[str, str] = {}
    for standard in STANDARD_COLUMNS:
        name: Any = names.get(f"{standard}_column", standard)
        found = None if name is None else find_column(name, seen)
        if found is None and name == standard:
            free = [column for column in seen if column not in columns.values()]
            found = find_column(standard, free, SYNONYMS.get(standard, ()))
        if found:
            columns[standard] = found
        elif name is not None and (name != standard or standard == "id"):
            if not seen:
                raise InvalidInputError(f"{source} is empty. Expected names of columns, and a row for each passage.")
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
    # A title under another name stays in the metadata, too: `label` may be what people filter by.
    taken = {column for standard, column in columns.items() if not _is_borrowed(standard, column)}
    listed = names.get("metadata_columns")
    metadata = [name for name in seen if name not in taken] if listed is None else list(listed)
    numeric = list(names.get("numeric_columns") or ())
    for which in (metadata, numeric):
        if missing := [name for name in which if name not in seen]:
            raise InvalidInputError(f"There are no columns {missing} in {source}. Its columns are {list(seen)}.")
    if unkept := [name for name in numeric if name not in metadata]:
        raise InvalidInputError(f"numeric_columns={unkept}: only metadata can be numbers, which is {metadata}.")
    return Columns(columns, metadata, frozenset(numeric))


def rows_from_records(
    records: Iterable[RecordItem], columns: Columns, image_of: Callable[[Any, str], Any]
) -> Iterator[SourceItem]:
    """Makes rows of records; without an id column the number of a record is its id.

    Args:
        records: The records, and faults, which pass as they are.
        columns: What holds what, as `choose_columns` finds it.
        image_of: Makes of an image cell, and of where it stands, something that `safe_image` takes, or refuses it.
    """
    for number, record in enumerate(records):
        if isinstance(record, SourceFault):
            yield record
            continue
        values = {standard: record.values.get(name) for standard, name in columns.standard.items()}
        values.setdefault("id", number)
        if _is_borrowed("title", columns.standard.get("title")) and not isinstance(values["title"], str):
            values["title"] = None  # a label that is a number is no heading
        try:
            metadata = _metadata_of(record, columns)
        except InvalidInputError as error:
            yield SourceFault(record.where, error, None if values["id"] is None else str(values["id"]))
            continue
        try:
            values["image"] = image_of(values.get("image"), record.where)
        except (InvalidInputError, UnsafeInputError) as error:
            values["image"] = error  # it may cost the passage, or the image alone
        yield SourceRow(record.where, values, metadata)


def _metadata_of(record: Record, columns: Columns) -> dict[str, Any]:
    return {
        name: _number(value, name, record.where) if name in columns.numeric else value
        for name in columns.metadata
        if (value := record.values.get(name)) is not None
    }


def _number(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, str):
        return value
    text = clean_text(value).replace("\u2212", "-")
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        hint = " Write a point before decimals, and no marks between thousands." if "," in text else ""
        raise InvalidInputError(f"{where}: {name!r} holds {value[:80]!r}, which is no number.{hint}")
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def _plain(name: str) -> str:
    """A name without case, blanks, `-` and `_`."""
    return re.sub("[\\s_\u200b\ufeff-]+", "", unicodedata.normalize("NFC", name).casefold())


def _is_borrowed(standard: str, column: str | None) -> bool:
    return standard == "title" and column is not None and any(_plain(column) == name for name in SYNONYMS["title"])
