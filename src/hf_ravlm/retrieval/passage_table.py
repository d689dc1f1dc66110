"""Knows the columns of a knowledge base and what a row must satisfy before it becomes a passage.

Every source (a list, a folder, a table, a data set) is read into the same stream of `SourceRow`; here the stream is
checked row by row and packed into one Arrow table, so that a million passages cost no million Python objects.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InvalidInputError, UnsafeInputError
from ..images import encoded_image


logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

TEXT_COLUMNS = ("source", "licence", "url", "title")
STANDARD_COLUMNS = ("id", "text", "image", *TEXT_COLUMNS)

# Images are `large_binary`: a `binary` array holds 2 GB at most.
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("text", pa.large_string()),
        ("image", pa.large_binary()),
        *((name, pa.string()) for name in TEXT_COLUMNS),
        ("metadata", pa.large_string()),
    ]
)

MAX_TEXT_BYTES = 65_536
_ROWS_PER_BATCH = 1_000


class SourceRow(NamedTuple):
    """One row as a source gives it: where it stands (for messages), its standard columns, and everything else."""

    where: str
    values: Mapping[str, Any]
    metadata: Mapping[str, Any]


def table_from_rows(rows: Iterable[SourceRow], on_error: OnError = "raise") -> tuple[pa.Table, list[tuple[str, str]]]:
    """Checks rows and packs them into a table with `SCHEMA`.

    Args:
        rows: The rows; an `image` may be anything that `safe_image` takes, and is stored as encoded bytes.
        on_error: What happens to a passage whose image cannot be used: `"raise"` stops, `"skip"` leaves the passage
            out and lists it. All other faults stop in either case.

    Returns:
        The table, and the skipped passages as pairs of id and reason.

    Raises:
        InvalidInputError: If a row has no id, neither text nor image, or a value of a wrong type, or if
            there is no row. That ids are unique is checked by `KnowledgeBase`.
        UnsafeInputError: If an image cannot be used and `on_error="raise"`.
    """
    if on_error not in ("raise", "skip"):
        raise InvalidInputError(f'on_error={on_error!r} is not known. Choose "raise" or "skip".')
    batches: list[pa.RecordBatch] = []
    pending: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    for row in rows:
        passage_id = checked_id(row.values.get("id"), row.where)
        try:
            pending.append(_checked_row(passage_id, row))
        except UnsafeInputError as error:
            if on_error == "raise":
                raise UnsafeInputError(
                    f'{row.where}: the image of passage {passage_id!r} cannot be used: {error} (on_error="skip" '
                    "leaves such passages out.)"
                ) from error
            skipped.append((passage_id, str(error)))
        if len(pending) == _ROWS_PER_BATCH:
            batches.append(pa.RecordBatch.from_pylist(pending, schema=SCHEMA))
            pending = []
    if pending:
        batches.append(pa.RecordBatch.from_pylist(pending, schema=SCHEMA))
    if skipped:
        logger.warning("%d passages were skipped because of their images; the first: %s", len(skipped), skipped[0])
    if not batches:
        raise InvalidInputError(
            f"There is no passage to take: {len(skipped)} rows were skipped and no other row was found. Check the "
            "source; `KnowledgeBase()` makes an empty knowledge base on purpose."
        )
    return pa.Table.from_batches(batches, schema=SCHEMA), skipped


def check_unique_ids(table: pa.Table) -> None:
    """Refuses a table in which an id occurs twice, naming the first few."""
    if len(pc.unique(table["id"])) == table.num_rows:
        return
    counts = pc.value_counts(table["id"])
    repeated = [entry["values"] for entry in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()]
    shown = ", ".join(map(repr, repeated[:5])) + (", ..." if len(repeated) > 5 else "")
    raise InvalidInputError(
        f"Passage ids must be unique, but {len(repeated)} of them occur more than once: {shown}. Rename or drop the "
        "repeated rows."
    )


def checked_id(value: Any, where: str) -> str:
    """Returns a passage id as text; whole numbers are converted, nothing else is."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InvalidInputError(
            f"{where}: the id is {value!r} of type {type(value).__name__}. Expected a string or a whole number."
        )
    if not value.strip():
        raise InvalidInputError(f"{where}: the id is empty. Give every passage an id of its own.")
    return _checked_unicode(value, "id", where)


def _checked_row(passage_id: str, row: SourceRow) -> dict[str, Any]:
    where = f"{row.where} (id {passage_id!r})"
    text = _checked_text(row.values.get("text"), where)
    image = row.values.get("image")
    if text is None and image is None:
        keys = [*(name for name, value in row.values.items() if value is not None), *row.metadata]
        raise InvalidInputError(
            f"{where}: the passage has neither text nor image. Columns with a value: {keys}. Give it a `text`, an "
            "`image`, or both."
        )
    checked = {name: _checked_string(row.values.get(name), name, where) for name in TEXT_COLUMNS}
    return {
        "id": passage_id,
        "text": text,
        "image": None if image is None else encoded_image(image),
        **checked,
        "metadata": _metadata_json(row.metadata, where),
    }


def _checked_text(value: Any, where: str) -> str | None:
    text = _checked_string(value, "text", where)
    if text is None or not text.strip():
        return None
    num_bytes = len(text.encode())
    if num_bytes > MAX_TEXT_BYTES:
        raise InvalidInputError(
            f"{where}: the text has {num_bytes:,} bytes, more than the limit of {MAX_TEXT_BYTES:,}. Split it into "
            "passages of a few sentences each; that is also what an encoder can read."
        )
    return text


def _checked_string(value: Any, name: str, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidInputError(
            f"{where}: `{name}` is {str(value)[:80]!r} of type {type(value).__name__}. Expected a string or None."
        )
    return _checked_unicode(value, name, where)


def _checked_unicode(value: str, name: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{where}: `{name}` holds half of a character pair ({error}) and cannot be stored as UTF-8. Decode the "
            "source with the right encoding."
        ) from error
    return value


def _metadata_json(metadata: Mapping[str, Any], where: str) -> str | None:
    if not metadata:
        return None
    try:
        return json.dumps(dict(metadata), ensure_ascii=True, default=_json_value)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{where}: the metadata cannot be written as JSON ({error}). Columns: {sorted(map(str, metadata))}. "
            "Keep only plain values, for tables with `metadata_columns=[...]`."
        ) from error


def _json_value(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.datetime, datetime.time)):
        return value.isoformat()
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
